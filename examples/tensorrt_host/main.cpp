// A host that treats plugins as TensorRT does: `tensorrt_host examples/data`. Its inputs cannot be written, working memory comes full
// of rubbish and ends in a guard, two contexts run at once, nothing may be allocated while a plugin is enqueued, and what comes out
// is compared with what is expected, to the bit.
//
//   g++ -std=c++17 examples/tensorrt_host/main.cpp $(pkg-config --cflags --libs libsae) -pthread -o tensorrt_host

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "plugins.hpp"

// ---- Allocations are counted while a plugin is enqueued -----------------------------------------------------------------------

namespace {
thread_local bool counting = false;
thread_local int allocations = 0;
}  // namespace

extern "C" {
void *__libc_malloc(std::size_t) noexcept;
void *__libc_calloc(std::size_t, std::size_t) noexcept;
void *__libc_realloc(void *, std::size_t) noexcept;
void *__libc_memalign(std::size_t, std::size_t) noexcept;

void *malloc(std::size_t size) noexcept {
  allocations += counting ? 1 : 0;
  return __libc_malloc(size);
}
void *calloc(std::size_t count, std::size_t size) noexcept {
  allocations += counting ? 1 : 0;
  return __libc_calloc(count, size);
}
void *realloc(void *old, std::size_t size) noexcept {
  allocations += counting ? 1 : 0;
  return __libc_realloc(old, size);
}
int posix_memalign(void **out, std::size_t alignment, std::size_t size) noexcept {
  allocations += counting ? 1 : 0;
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : 12;
}
}

namespace {

using namespace nvinfer1;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

template <class T>
std::vector<T> read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  CHECK(!values.empty());
  return values;
}

// ---- The engine's memory ----------------------------------------------------------------------------------------------------

/// Pages of their own, which can be closed for writing.
class Pages {
 public:
  explicit Pages(std::size_t size)
      : size_(size + 4096), data_(static_cast<char *>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    CHECK(data_ != MAP_FAILED);
  }
  template <class T>
  explicit Pages(const std::vector<T> &values) : Pages(values.size() * sizeof(T)) {
    std::memcpy(data_, values.data(), values.size() * sizeof(T));
    CHECK(mprotect(data_, size_, PROT_READ) == 0);
  }
  Pages(const Pages &) = delete;
  Pages &operator=(const Pages &) = delete;
  ~Pages() { munmap(data_, size_); }

  [[nodiscard]] char *data() const { return data_; }
  template <class T>
  [[nodiscard]] bool equals(const std::vector<T> &values) const {
    return std::memcmp(data_, values.data(), values.size() * sizeof(T)) == 0;
  }

 private:
  std::size_t size_;
  char *data_;
};

/// Working memory as an engine shares it between layers: full of what others left there, and not a byte more than was asked for.
class Workspace {
 public:
  explicit Workspace(std::size_t size) : size_(size), pages_(size + guard) {}

  void *dirty(unsigned seed) {
    for (std::size_t i = 0; i < size_ + guard; ++i) pages_.data()[i] = rubbish(i, seed);
    seed_ = seed;
    return pages_.data();
  }
  [[nodiscard]] bool guard_is_whole() const {
    for (std::size_t i = size_; i < size_ + guard; ++i) {
      if (pages_.data()[i] != rubbish(i, seed_)) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t guard = 4096;
  static char rubbish(std::size_t i, unsigned seed) { return static_cast<char>((i * 31 + seed * 17) >> 2); }
  std::size_t size_;
  Pages pages_;
  unsigned seed_ = 0;
};

PluginTensorDesc matrix(std::int64_t rows, std::int64_t cols, DataType type) { return {{2, {rows, cols}}, type}; }
PluginTensorDesc vector(std::int64_t length, DataType type) { return {{1, {length}}, type}; }

std::int32_t enqueue(IPluginV3OneRuntime &plugin, const std::vector<PluginTensorDesc> &in, const std::vector<PluginTensorDesc> &out,
                     const std::vector<const void *> &inputs, const std::vector<void *> &outputs, void *workspace) {
  counting = true;
  const std::int32_t status = plugin.enqueue(in.data(), out.data(), inputs.data(), outputs.data(), workspace, nullptr);
  counting = false;
  return status;
}

// ---- What is expected ---------------------------------------------------------------------------------------------------------

constexpr std::int64_t tokens = 32, d = 576, k = 16;

struct Expected {
  explicit Expected(const std::string &folder)
      : x(read<float>(folder + "/activations.f32")),
        values(read<float>(folder + "/expected/values.f32")),
        steered(read<float>(folder + "/expected/steered.f32")),
        indices(read<std::int32_t>(folder + "/expected/indices.i32")),
        counts(read<std::int32_t>(folder + "/expected/counts.i32")),
        edits(read<sae_edit>(folder + "/expected/edits.raw")) {
    // The requests of every second row are steered, the others' rows are to be left alone.
    for (std::int64_t t = 0; t < tokens; ++t) slots.push_back(t % 2 == 0 ? 1 : -1);
    for (std::int64_t i = 0; i < tokens * d; ++i) every_second.push_back(i / d % 2 == 0 ? steered[i] : x[i]);
  }
  std::vector<float> x, values, steered, every_second;
  std::vector<std::int32_t> indices, counts, slots;
  std::vector<sae_edit> edits;
};

/// An execution context: its own plugins and working memory, the engine's inputs.
void execute(sae_plugins::Encode &encoder, sae_plugins::Steer &steerer, const Expected &expected) {
  const std::unique_ptr<sae_plugins::Encode> encode(static_cast<sae_plugins::Encode *>(encoder.attachToContext(nullptr)));
  const std::unique_ptr<sae_plugins::Steer> steer(static_cast<sae_plugins::Steer *>(steerer.attachToContext(nullptr)));
  CHECK(encode && steer);
  steer->set_edits(1, expected.edits);

  const PluginTensorDesc x = matrix(tokens, d, DataType::kFLOAT), slots = vector(tokens, DataType::kINT32);
  const std::vector<PluginTensorDesc> found = {matrix(tokens, k, DataType::kFLOAT), matrix(tokens, k, DataType::kINT32), vector(tokens, DataType::kINT32)};
  CHECK(encode->onShapeChange(&x, 1, found.data(), 3) == 0 && steer->onShapeChange(&x, 2, &x, 1) == 0);
  const PluginTensorDesc large = matrix(tokens + 1, d, DataType::kFLOAT);
  CHECK(encode->onShapeChange(&large, 1, found.data(), 3) != 0);

  // One memory for both layers, as engines do it.
  Workspace workspace(std::max(encode->getWorkspaceSize(nullptr, 0, nullptr, 0), steer->getWorkspaceSize(nullptr, 0, nullptr, 0)));
  const Pages of_x(expected.x), of_slots(expected.slots);
  const Pages values(tokens * k * 4), indices(tokens * k * 4), counts(tokens * 4), y(tokens * d * 4);
  for (unsigned round = 0; round < 10; ++round) {
    CHECK(enqueue(*encode, {x}, found, {of_x.data()}, {values.data(), indices.data(), counts.data()}, workspace.dirty(2 * round)) == 0);
    CHECK(workspace.guard_is_whole());
    CHECK(enqueue(*steer, {x, slots}, {x}, {of_x.data(), of_slots.data()}, {y.data()}, workspace.dirty(2 * round + 1)) == 0);
    CHECK(workspace.guard_is_whole());
    CHECK(values.equals(expected.values) && indices.equals(expected.indices) && counts.equals(expected.counts));
    CHECK(y.equals(expected.every_second));
  }
  CHECK(allocations == 0);

  // What cannot be done is said, and writes nothing.
  const PluginTensorDesc narrow = matrix(tokens, d - 1, DataType::kFLOAT);
  std::memset(y.data(), 7, tokens * d * 4);
  const std::vector<char> before(y.data(), y.data() + tokens * d * 4);
  CHECK(enqueue(*steer, {narrow, slots}, {x}, {of_x.data(), of_slots.data()}, {y.data()}, workspace.dirty(0)) != 0);
  CHECK(enqueue(*steer, {x, slots}, {x}, {of_x.data(), of_slots.data()}, {y.data()}, nullptr) != 0);
  CHECK(y.equals(before));
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s examples/data\n", argv[0]);
    return 2;
  }
  const std::string folder = argv[1];
  const Expected expected(folder);
  const auto model = std::make_shared<const sae::Model>(sae::Model::load(folder + "/sae.safetensors"));
  sae_plugins::Encode encode({model, tokens, 1});
  sae_plugins::Steer steer({model, tokens, 2});
  counting = true;
  void *volatile counted = std::malloc(8);
  counting = false;
  std::free(counted);
  CHECK(std::exchange(allocations, 0) == 1);

  std::thread other([&] { execute(encode, steer, expected); });
  execute(encode, steer, expected);
  other.join();
  std::printf("two contexts at once: features and steered rows have the same bits, nothing was allocated in enqueue\n");
  return 0;
}
