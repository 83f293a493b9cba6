// sae.hpp where nothing may throw: compiled with -fno-exceptions.

#include "sae.hpp"

#include <cstdio>
#include <string>
#include <vector>

int main(int argc, char **argv) {
  if (argc < 2) return 1;
  sae_train_options options = SAE_TRAIN_OPTIONS_INIT;
  options.d = 4;
  options.n_latents = 8;
  options.k = 2;
  sae::Result<sae::Trainer> trainer = sae::Trainer::create(options);
  if (!trainer) return 2;
  const std::vector<float> x = {1, 2, 3, 4, 4, 3, 2, 1, -1, 0, 1, 0};
  if (!trainer->init_from({x.data(), 3, 4})) return 3;
  if (const sae::Result<sae_train_stats> stats = trainer->step({x.data(), 3, 4}); !stats || stats.value().step != 1) return 4;
  sae::Result<sae::Model> model = trainer->export_model();
  if (!model || !model->save(std::string(argv[1]) + "/sae.safetensors")) return 5;

  sae::Result<sae::Model> missing = sae::Model::load("/no/such/file");
  if (missing || missing.error().status() != SAE_ERROR_IO) return 6;
  sae::Result<sae::Session> session = sae::Session::create(*model);
  sae::Features features(3, 2);
  if (!session || !session->encode({x.data(), 3, 4}, features)) return 7;
  const sae::Result<void> refused = session->encode({x.data(), 4, 3}, features);
  if (refused.ok() || refused.error().message().find("x: ") == std::string::npos) return 8;
  std::printf("ok\n");
  return 0;
}
