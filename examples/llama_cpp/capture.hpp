// Features of text: what training saw of each, and what a prompt makes fire.
#pragma once

#include <string>
#include <vector>

#include <sae.hpp>

#include "contexts.hpp"
#include "stream.hpp"
#include "themes.hpp"

// A session for so many tokens a call; flags are SAE_SESSION_….
sae::Session make_session(const sae::Model &sae, const sae::Pool &pool, size_t max_rows, uint32_t flags = 0);

// Goes through all kept rows once more with the finished SAE.
Contexts find_contexts(const sae::Model &sae, const sae::Pool &pool, const Rows &kept, size_t window);

// Runs a prompt through the engine and prints, per token, its strongest features, and for the strongest of them their best contexts.
void show_capture(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, const std::string &prompt, const Rows &seen,
                  const Contexts &contexts, const Themes &themes);

// "… the words before [the peak] and after …"
std::string show_context(const Model &model, const Window &window, size_t pos);
