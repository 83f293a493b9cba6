// Makes and frees one of everything, 10,000 times, and sees that the process does not grow. `cycles examples/data [CYCLES]`.

#include <sae.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

// Bytes of memory that the process holds.
long resident() {
  long pages = 0, held = 0;
  std::FILE *file = std::fopen("/proc/self/statm", "r");
  if (!file || std::fscanf(file, "%ld %ld", &pages, &held) != 2) std::abort();
  std::fclose(file);
  return held * sysconf(_SC_PAGESIZE);
}

std::vector<float> numbers(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i * 7919 % 1000) / 500.0f - 1.0f;
  return values;
}

void fails() {
  sae_model *model = nullptr;
  sae_error *error = nullptr;
  if (sae_model_load("/no/such/file", nullptr, &model, &error) != SAE_ERROR_IO) std::abort();
  sae_error_free(error);
}

void cycle(const std::string &path, bool leak) {
  constexpr std::int64_t d = 16, n = 64, tokens = 8;
  static const std::vector<float> w = numbers(n * d), x = numbers(tokens * d);
  const sae::Pool pool = sae::Pool::create(2);
  sae_load_options mapped = SAE_LOAD_OPTIONS_INIT;
  mapped.flags = SAE_LOAD_MAP;
  const sae::Model file = sae::Model::load(path, &mapped);

  sae_model_desc desc = SAE_MODEL_DESC_INIT;
  desc.architecture = SAE_ARCHITECTURE_TOP_K;
  desc.d_in = d;
  desc.n_latents = n;
  desc.k = 4;
  sae::Model made = sae::Model::from_weights(desc, {{"W_enc", {w.data(), n, d}}, {"W_dec", {w.data(), n, d}}});
  const sae::Model smaller = made.with_k(2);
  sae_session_options options = SAE_SESSION_OPTIONS_INIT;
  options.max_tokens = tokens;
  options.pool = pool.get();
  sae::Session session = sae::Session::create(smaller, &options);
  sae::Features features(tokens, 2);
  session.set_edits(0, {sae::add(3, 1.0f)});
  session.encode({x.data(), tokens, d}, features);
  const sae::Report report = sae::Report::examine(made, {x.data(), tokens, d});

  sae_train_options run = SAE_TRAIN_OPTIONS_INIT;
  run.d = d;
  run.n_latents = n;
  run.k = 4;
  run.max_batch_tokens = tokens;
  sae::Trainer trainer = sae::Trainer::create(run);
  trainer.init_from({x.data(), tokens, d});
  trainer.step({x.data(), tokens, d});
  fails();
  if (leak) (void)made.release();
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  const std::string path = std::string(argv[1]) + "/sae.safetensors";
  const int cycles = argc > 2 ? std::atoi(argv[2]) : 10000;
  const bool leak = argc > 3;  // to see that growth is seen
  try {
    // The allocator's own books settle first.
    for (int i = 0; i < cycles / 10; ++i) cycle(path, leak);
    const long before = resident();
    for (int i = 0; i < cycles; ++i) cycle(path, leak);
    const long grown = resident() - before;
    std::printf("%d cycles: %ld KiB held before, %ld KiB more after\n", cycles, before / 1024, grown / 1024);
    return grown <= 256 * 1024 ? 0 : 1;
  } catch (const sae::Error &error) {
    std::fprintf(stderr, "%s: %s\n", sae_status_name(error.status()), error.what());
    return 1;
  }
}
