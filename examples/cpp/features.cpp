// Encodes, rebuilds and steers real activations, and compares every bit with what is expected:
//
//   g++ -std=c++17 examples/cpp/features.cpp $(pkg-config --cflags --libs libsae) -o features && ./features examples/data
//
// examples/data/README.md says what the files hold.

#include <sae.hpp>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

template <class T>
std::vector<T> read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// Whether what was computed is what the file says, to the bit.
template <class T>
bool same(const std::string &path, const std::vector<T> &computed) {
  const std::vector<T> expected = read<T>(path);
  const bool equal = expected.size() == computed.size() &&
                     std::memcmp(expected.data(), computed.data(), computed.size() * sizeof(T)) == 0;
  std::printf("%s: %s\n", path.c_str(), equal ? "the same bits" : "DIFFERENT");
  return equal;
}

bool run(const std::string &folder) {
  const sae::Model model = sae::Model::load(folder + "/sae.safetensors");
  const sae_info info = model.info();
  std::printf("%lld latents of %s at %s (%s in llama.cpp)\n", static_cast<long long>(info.n_latents), info.model_name,
              info.hook_point, info.hook_point_ggml);

  std::vector<float> x = read<float>(folder + "/activations.f32"), x_hat(x.size());
  const std::int64_t d = info.d_in, tokens = static_cast<std::int64_t>(x.size()) / d;
  sae::Session session = sae::Session::create(model);
  sae::Features features(tokens, info.k, info.row_state_width);
  session.encode({x.data(), tokens, d}, features);
  session.decode(features, {x_hat.data(), tokens, d});
  session.set_edits(0, read<sae_edit>(folder + "/expected/edits.raw"));
  session.steer({x.data(), tokens, d});

  std::printf("token 0:");
  for (const auto [latent, value] : features.row(0)) std::printf("  %d: %.3f", latent, value);
  std::printf("\n");
  bool equal = same(folder + "/expected/indices.i32", features.indices());
  equal &= same(folder + "/expected/values.f32", features.values());
  equal &= same(folder + "/expected/counts.i32", features.counts());
  equal &= same(folder + "/expected/x_hat.f32", x_hat);
  equal &= same(folder + "/expected/steered.f32", x);
  return equal;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s examples/data\n", argv[0]);
    return 2;
  }
  try {
    return run(argv[1]) ? 0 : 1;
  } catch (const sae::Error &error) {
    std::fprintf(stderr, "%s: %s\n", sae_status_name(error.status()), error.what());
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 1;
}
