// One model, 32 threads with a session each: every one gets the expected bits, again and again, while the model's first owner has
// let go of it. `threads examples/data [ROUNDS] [THREADS]`. With RACE defined the threads steer the same rows, which a sanitizer has to
// see inside the library.

#include <sae.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

template <class T>
std::vector<T> read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

struct Data {
  explicit Data(const std::string &folder)
      : x(read<float>(folder + "/activations.f32")),
        values(read<float>(folder + "/expected/values.f32")),
        x_hat(read<float>(folder + "/expected/x_hat.f32")),
        steered(read<float>(folder + "/expected/steered.f32")),
        indices(read<std::int32_t>(folder + "/expected/indices.i32")),
        edits(read<sae_edit>(folder + "/expected/edits.raw")) {}
  std::vector<float> x, values, x_hat, steered;
  std::vector<std::int32_t> indices;
  std::vector<sae_edit> edits;
};

template <class T>
bool same(const std::vector<T> &a, const std::vector<T> &b) {
  return !a.empty() && a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// What one thread does with a session of its own; how many rounds went wrong.
int work(sae::Session session, const sae::Model &model, const Data &data, int rounds) {
  const std::int64_t d = 576, tokens = 32, k = 16;
  int wrong = 0;
  for (int round = 0; round < rounds; ++round) {
    std::vector<float> x = data.x, x_hat(x.size());
    sae::Features features(tokens, k);
    session.encode({x.data(), tokens, d}, features);
    session.decode(features, {x_hat.data(), tokens, d});
    session.set_edits(0, data.edits);
    session.steer({x.data(), tokens, d});
#ifdef RACE
    static std::vector<float> shared = data.x;
    session.steer({shared.data(), tokens, d});
#endif
    wrong += !(same(features.indices(), data.indices) && same(features.values(), data.values) && same(x_hat, data.x_hat) &&
               same(x, data.steered) && model.info().d_in == d);
    // Sessions come and go beside those that work.
    session = sae::Session::create(model);
  }
  return wrong;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  const std::string folder = argv[1];
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 20, threads = argc > 3 ? std::atoi(argv[3]) : 32;
  try {
    const Data data(folder);
    // The pool's threads are shared too: by every second session.
    const sae::Pool pool = sae::Pool::create(3);
    sae_session_options options = SAE_SESSION_OPTIONS_INIT;
    options.max_tokens = 32;
    std::atomic<int> wrong{0};
    auto model = std::make_shared<sae::Model>(sae::Model::load(folder + "/sae.safetensors"));
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) {
      options.pool = i % 2 ? pool.get() : nullptr;
      running.emplace_back([&data, &wrong, rounds, model, session = sae::Session::create(*model, &options)]() mutable {
        wrong += work(std::move(session), *model, data, rounds);
        model.reset();
      });
    }
    model.reset();
    for (std::thread &thread : running) thread.join();
    std::printf("%d threads, %d rounds each, %d wrong\n", threads, rounds, wrong.load());
    return wrong == 0 ? 0 : 1;
  } catch (const sae::Error &error) {
    std::fprintf(stderr, "%s: %s\n", sae_status_name(error.status()), error.what());
    return 1;
  }
}
