// Trains a small SAE on made-up activations, saves it, loads it, and looks at, rebuilds and steers activations with it.
//
//   g++ -std=c++17 examples/cpp/train_and_steer.cpp $(pkg-config --cflags --libs libsae) -o train_and_steer && ./train_and_steer

#include <sae.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t d = 32, directions = 24, tokens = 256, latents = 64, k = 4;

// Each token is a sum of a few of `directions` fixed vectors: what an SAE is good at finding again.
std::vector<float> activations(std::mt19937 &random, const std::vector<float> &vectors) {
  std::vector<float> x(tokens * d);
  std::uniform_real_distribution<float> strength(0.5f, 2.0f);
  std::uniform_int_distribution<std::int64_t> which(0, directions - 1);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int part = 0; part < 3; ++part) {
      const std::int64_t v = which(random);
      const float s = strength(random);
      for (std::int64_t j = 0; j < d; ++j) x[t * d + j] += s * vectors[v * d + j];
    }
  }
  return x;
}

int run(const std::string &dir) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> vectors(directions * d);
  for (float &v : vectors) v = normal(random) / std::sqrt(static_cast<float>(d));

  sae_convention convention = SAE_CONVENTION_INIT;
  convention.model_name = "made-up";
  convention.hook_point = "blocks.3.hook_resid_post";
  sae_train_options options = SAE_TRAIN_OPTIONS_INIT;
  options.d = d;
  options.n_latents = latents;
  options.k = k;
  options.learning_rate = 3e-3f;
  options.convention = &convention;
  sae::Trainer trainer = sae::Trainer::create(options);
  trainer.init_from({activations(random, vectors).data(), tokens, d});
  for (int step = 1; step <= 200; ++step) {
    const std::vector<float> x = activations(random, vectors);
    const sae_train_stats stats = trainer.step({x.data(), tokens, d});
    if (step % 50 == 0) std::printf("step %d: FVU %.3f, L0 %.1f\n", step, stats.fvu, stats.l0);
  }
  trainer.save(dir + "/checkpoint");
  trainer.export_model(SAE_EXPORT_EMA).save(dir + "/sae.safetensors");

  const sae::Model model = sae::Model::load(dir + "/sae.safetensors");
  const sae_info info = model.info();
  std::printf("loaded: %lld latents of %s at %s (%s in llama.cpp)\n", static_cast<long long>(info.n_latents),
              info.model_name, info.hook_point, info.hook_point_ggml);

  sae::Session session = sae::Session::create(model);
  std::vector<float> x = activations(random, vectors);
  sae::Features features(tokens, info.k, info.row_state_width);
  session.encode({x.data(), tokens, d}, features);
  std::printf("token 0:");
  for (const auto [latent, value] : features.row(0)) std::printf("  %d: %.2f", latent, value);
  std::printf("\n");

  std::vector<float> x_hat(tokens * d);
  session.decode(features, {x_hat.data(), tokens, d});

  // The strongest latent of token 0 doubled, on all tokens: only those change on which it is active.
  const std::int32_t strongest = features.row(0)[0].index;
  session.set_edits(0, {sae::scale(strongest, 2.0f)});
  const std::vector<float> before = x;
  session.steer({x.data(), tokens, d});
  int changed = 0;
  for (std::int64_t t = 0; t < tokens; ++t) changed += x[t * d] != before[t * d];
  std::printf("steering latent %d changed %d of %d tokens\n", strongest, changed, static_cast<int>(tokens));
  return changed > 0 && changed < tokens ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char **argv) {
  try {
    return run(argc > 1 ? argv[1] : ".");
  } catch (const sae::Error &error) {
    std::fprintf(stderr, "%s: %s\n", sae_status_name(error.status()), error.what());
    return EXIT_FAILURE;
  }
}
