// What the files of the test share.
#pragma once

#include <string>

#include <sae.hpp>

#include "engine.hpp"

void expect(bool ok, const std::string &what);  // prints it, counts failures
std::string number(double x);

// The demo in small, on the text and into a folder of `data`.
void the_whole_runs(const Model &model, const std::string &data, const sae::Pool &pool);

// Requests that come and go, read and steered apart.
void a_server_runs(const Model &model, const sae::Pool &pool);

// SAEs trained on real residuals, faults planted in what they are then given, and whether sae_doctor names each.
void the_doctor_names_faults(const Model &model, const std::string &data, const sae::Pool &pool);
