// A C++17 program that uses all of sae.hpp, as a host would: `consumer DIRECTORY`.

#include "sae.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      std::fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition);     \
      std::exit(1);                                                            \
    }                                                                          \
  } while (0)

static_assert(!std::is_copy_constructible_v<sae::Model> && std::is_nothrow_move_constructible_v<sae::Model>);
static_assert(!std::is_copy_constructible_v<sae::Session> && std::is_nothrow_move_assignable_v<sae::Session>);
static_assert(!std::is_copy_constructible_v<sae::Trainer> && !std::is_copy_constructible_v<sae::Pool>);
static_assert(sizeof(sae::Session) == sizeof(void *));
static_assert(!std::is_copy_constructible_v<sae::Report> && std::is_nothrow_move_constructible_v<sae::Report>);
// What may not be written cannot be made an output.
static_assert(!std::is_constructible_v<sae::TensorMut, const float *, std::int64_t, std::int64_t>);
static_assert(!std::is_constructible_v<sae::TensorMut, const std::vector<float> &>);
static_assert(!std::is_convertible_v<const sae::Features &, sae::FeaturesMut>);

namespace {

constexpr std::int64_t d = 16, n = 24, k = 3, tokens = 20;

std::vector<float> numbers(std::int64_t count) {
  static std::uint32_t state = 99;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float &value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

template <class Call>
void fails(sae_status status, const char *named, Call call) {
  try {
    call();
  } catch (const sae::Error &error) {
    CHECK(error.status() == status && error.message() == error.what());
    CHECK(error.message().find(named) != std::string::npos);
    return;
  }
  std::fprintf(stderr, "nothing was thrown about %s\n", named);
  std::exit(1);
}

void in_turn(void *context, std::size_t count, sae_task task, void *arg) {
  ++*static_cast<int *>(context);
  for (std::size_t i = 0; i < count; ++i) task(arg, i);
}

sae::Trainer trained(const std::string &dir) {
  sae_train_options options = SAE_TRAIN_OPTIONS_INIT;
  options.d = d;
  options.n_latents = n;
  options.k = k;
  options.learning_rate = 1e-2f;
  options.normalization = SAE_NORMALIZATION_LAYER_NORM;
  sae::Trainer trainer = sae::Trainer::create(options);
  const std::vector<float> sample = numbers(tokens * d);
  trainer.init_from({sample.data(), tokens, d});
  const std::vector<std::int32_t> mask = [] {
    std::vector<std::int32_t> all(static_cast<std::size_t>(tokens), 1);
    all[0] = 0;
    return all;
  }();
  double first = 0.0, last = 0.0;
  for (int step = 0; step < 20; ++step) {
    const sae_train_stats stats = trainer.step({{sample.data(), tokens, d}, mask});
    CHECK(stats.applied == 1 && stats.tokens_masked == 1);
    (step == 0 ? first : last) = stats.mse;
  }
  CHECK(last < first);
  sae::Batch batch(sample.data(), tokens, d);
  batch.accumulate = true;
  CHECK(trainer.step(batch).applied == 0);
  trainer.save(dir + "/checkpoint");
  fails(SAE_ERROR_BAD_STATE, "already started", [&] { trainer.init_from({sample.data(), tokens, d}); });
  sae::Trainer resumed = sae::Trainer::resume(dir + "/checkpoint");
  CHECK(resumed.progress().step == 20 && resumed.progress().tokens_seen == trainer.progress().tokens_seen);
  sae::Trainer warm = sae::Trainer::create(options);
  warm.warm_start(resumed.export_model(SAE_EXPORT_EMA), {sample.data(), tokens, d});
  return resumed;
}

// One batch of a buffer is lent to an SAE and to a crosscoder of its two layers; what is saved is restored.
void mixed(const std::string &dir) {
  constexpr std::int64_t layers = 2, batch = 8;
  sae_buffer_options options = SAE_BUFFER_OPTIONS_INIT;
  options.d = layers * d;
  options.memory_bytes = 1 << 16;
  CHECK(sae::Buffer::memory(options).capacity > 2 * tokens);
  sae::Buffer buffer = sae::Buffer::create(options);
  sae_train_options plain = SAE_TRAIN_OPTIONS_INIT, crossing = SAE_TRAIN_OPTIONS_INIT;
  plain.d = layers * d;
  crossing.d = d;
  crossing.layers = layers;
  plain.n_latents = crossing.n_latents = n;
  plain.k = crossing.k = k;
  sae::Trainer whole = sae::Trainer::create(plain), crosscoder = sae::Trainer::create(crossing);
  const std::vector<float> x = numbers(2 * tokens * layers * d);
  const sae::Tensor rows(x.data(), 2 * tokens, layers * d);
  whole.init_from(rows);
  crosscoder.init_from(rows);
  crosscoder.set_rate(0.5);
  fails(SAE_ERROR_INVALID_ARGUMENT, "rate must be", [&] { crosscoder.set_rate(0.0); });

  sae::Rows some = rows;
  CHECK(buffer.push(some) == 2 * tokens);
  some.first = 2 * tokens - 1;
  CHECK(buffer.push(some, 0) == 1 && buffer.stats().pushed == 2 * tokens + 1);
  buffer.save(dir + "/buffer");
  sae::Buffer again = sae::Buffer::restore(dir + "/buffer");
  for (sae::Buffer *each : {&buffer, &again}) each->close();
  fails(SAE_ERROR_BAD_STATE, "closed", [&] { buffer.push(some); });
  std::vector<float> taken(batch * layers * d), other(taken.size());
  const sae::TensorMut out(taken.data(), batch, layers * d), same(other.data(), batch, layers * d);
  std::int64_t count = 0, all = 0;
  while ((count = buffer.take(out)) != SAE_BUFFER_END) {
    CHECK(again.take(same) == count && std::memcmp(taken.data(), other.data(), count * layers * d * sizeof(float)) == 0);
    all += count;
    const sae::Tensor part(taken.data(), count, layers * d);
    CHECK(whole.step(part).applied == 1 && crosscoder.step(part).applied == 1);
  }
  CHECK(all == 2 * tokens + 1 && again.take(same) == SAE_BUFFER_END);
  const sae_info made = crosscoder.export_model().info();
  CHECK(made.layers_in == layers && made.layers_out == layers && made.d_in == layers * d);
}

void steer(sae::Session &session, const sae::Model &model, const std::vector<float> &x, const sae::Features &features) {
  // One latent added is its decoder row, scaled, added.
  const auto [latent, value] = features.row(0)[0];
  std::vector<float> row(static_cast<std::size_t>(d));
  model.read(SAE_WEIGHT_W_DEC, latent, 1, {row.data(), 1, d});
  session.set_edits(0, {sae::add(latent, 1.5f)});
  std::vector<float> y = x;
  session.steer({y.data(), tokens, d});
  const float sigma = features.row_state()[1];
  for (std::int64_t j = 0; j < d; ++j) CHECK(std::abs(y[j] - (x[j] + 1.5f * sigma * row[j])) < 1e-5f);

  // Slots by token; what is known needs no encode; results elsewhere.
  session.set_edits(1, std::vector<sae_edit>{sae::set(latent, 0.0f)});
  std::vector<std::int32_t> slots(static_cast<std::size_t>(tokens), -1);
  slots[0] = 1;
  slots[1] = 0;
  sae::Steering steering;
  steering.row_slot = slots;
  steering.known = features;
  std::vector<float> out(x.size());
  session.steer({{x.data(), tokens, d}}, steering, {out.data(), tokens, d});
  for (std::int64_t j = 0; j < d; ++j) CHECK(std::abs(out[j] - (x[j] - value * sigma * row[j])) < 1e-5f);
  CHECK(std::memcmp(out.data() + 2 * d, x.data() + 2 * d, (tokens - 2) * d * sizeof(float)) == 0);
  std::vector<float> again = x;
  session.steer({again.data(), tokens, d}, slots);
  CHECK(again == out);
  session.set_edits(0, {sae::scale(latent, 2.0f), sae::ablate(latent == 0 ? 1 : 0)});

  // An edit that may change at most so much, of active latents alone; edits from an array; none.
  const std::array<sae_edit, 1> bounded = {sae::only_active(sae::limited(sae::add(latent, 100.0f), 0.5f))};
  session.set_edits(0, bounded);
  y = x;
  session.steer({y.data(), tokens, d});
  for (std::int64_t j = 0; j < d; ++j) CHECK(std::abs(y[j] - (x[j] + 0.5f * sigma * row[j])) < 1e-5f);
  session.set_edits(0, {});
  y = x;
  session.steer({y.data(), tokens, d});
  CHECK(y == x);
  session.status();
}

// What needs no model: versions, names, and what is heard of a load.
void look_around(const std::string &path) {
  CHECK(sae::abi_version() == SAE_ABI_VERSION && std::strlen(sae::version()) > 0);
  CHECK(std::strcmp(sae::kernels().front(), "scalar") == 0);
  bool native = false;
  for (const sae::Format &format : sae::formats()) native |= format.writes && std::strcmp(format.name, "native") == 0;
  CHECK(native);

  static std::string heard;
  sae::log_to(SAE_LOG_INFO, [](std::int32_t, std::string_view text) { heard += text; });
  fails(SAE_ERROR_BAD_STATE, "", [&] { sae::log_to(SAE_LOG_INFO, [copy = path](std::int32_t, std::string_view) {}); });
  sae::Model loaded = sae::Model::load(path);
  CHECK(heard.find("sae.safetensors") != std::string::npos);

  // A handle goes to C and comes back.
  const sae::Model back(loaded.release());
  CHECK(loaded.get() == nullptr && back.info().n_latents == n);
}

// Crosscoders read and write several layers of a token, which may lie wherever the host has them.
void cross() {
  constexpr std::int64_t layers = 2, width = d / layers;
  const std::vector<float> w = numbers(n * d), x = numbers(tokens * d);
  sae_model_desc desc = SAE_MODEL_DESC_INIT;
  desc.architecture = SAE_ARCHITECTURE_TOP_K;
  desc.d_in = d;
  desc.layers_in = desc.layers_out = layers;
  desc.n_latents = n;
  desc.k = k;
  const sae::Model model = sae::Model::from_weights(desc, {{"W_enc", {w.data(), n, d}}, {"W_dec", {w.data(), n, d}}});
  sae::Session session = sae::Session::create(model);
  sae::Features flat(tokens, k), block(tokens, k), apart(tokens, k);
  session.encode({x.data(), tokens, d}, flat);
  session.encode(sae::Tensor::block(x.data(), tokens, layers, width), block);
  std::vector<float> by_layer(x.size()), out(x.size()), rebuilt(x.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < d; ++i) by_layer[(i / width * tokens + t) * width + i % width] = x[t * d + i];
  }
  session.encode(sae::Tensor::block(by_layer.data(), tokens, layers, width, width, tokens * width), apart);
  CHECK(flat.values() == block.values() && flat.values() == apart.values() && flat.indices() == apart.indices());
  session.decode(flat, sae::TensorMut::block(out.data(), tokens, layers, width));
  session.decode(flat, {rebuilt.data(), tokens, d});
  CHECK(out == rebuilt);
}

// Everything that says how a call runs.
void ways_to_run(sae::Session &session, const std::vector<float> &x, const sae::Features &expected) {
  sae::Features features(tokens, k, 2);
  session.encode({x.data(), tokens, d}, features, sae::Run().fast().synchronous());
  CHECK(features.values() == expected.values());
  session.encode({x.data(), tokens, d}, features, sae::Run().order_index().round_sum());
  std::int32_t last = -1;
  for (const auto [latent, value] : features.row(0)) {
    CHECK(latent > last && value > 0.0f);
    last = latent;
  }
  alignas(64) static std::array<char, 1 << 20> workspace;
  session.encode({x.data(), tokens, d}, features, sae::Run().in(workspace.data(), workspace.size()));
  CHECK(features.values() == expected.values());
  fails(SAE_ERROR_UNSUPPORTED, "stream", [&] {
    session.encode({x.data(), tokens, d}, features, sae::Run().on_stream(nullptr));
  });
  session.wait();
}

// What an atlas tells of features it has watched.
void map(const std::string &path) {
  sae_atlas_options options = SAE_ATLAS_OPTIONS_INIT;
  options.n_latents = n;
  options.max_width = k;
  CHECK(sae::Atlas::memory(options) > 0);
  sae::Atlas atlas = sae::Atlas::create(options), other = sae::Atlas::create(options);
  const std::vector<float> values = {1.5f, 0.25f, 3.0f, 0.5f};
  const std::vector<std::int32_t> indices = {4, 7, 4, 9}, counts = {2, 2}, texts = {101, 102};
  const sae::FeaturesRef seen{{values.data(), 2, 2}, {indices.data(), 2, 2}, counts, {}};
  const std::int64_t documents[] = {5, 5}, elsewhere[] = {6, 6}, positions[] = {0, 1};
  atlas.observe(seen, texts, documents, positions);
  other.observe(seen, texts, elsewhere);
  atlas.merge(other);
  atlas.finish();
  atlas.save(path);
  const sae::Atlas loaded = sae::Atlas::load(path);
  CHECK(loaded.info().tokens == 4 && loaded.feature(4).count == 4 && loaded.feature(4).max == 3.0f);
  const sae::Window window = loaded.window(4, SAE_WINDOWS_TOP, 0);
  CHECK(window.place.value == 3.0f && window.tokens == texts && window.activations == std::vector<float>({1.5f, 3.0f}));
  fails(SAE_ERROR_INVALID_ARGUMENT, "index", [&] { (void)loaded.window(4, SAE_WINDOWS_TOP, 99); });
}

int run(const std::string &dir) {
  const std::string path = dir + "/sae.safetensors";
  {
    sae::Trainer trainer = trained(dir);
    trainer.export_model().save(path);
  }
  look_around(path);
  cross();
  map(dir + "/atlas");
  mixed(dir);
  const sae::Model model = sae::Model::load(path);
  const sae_info info = model.info();
  CHECK(info.k == k && info.row_state_width == 2 && info.normalization == SAE_NORMALIZATION_LAYER_NORM);
  CHECK(sae::Model::memory(path).resident == info.bytes);

  const std::vector<float> sample = numbers(tokens * d);
  CHECK(model.with_k(k + 1).info().k == k + 1 && model.prefix(n / 2).info().n_latents == n / 2);
  CHECK(model.subset({5, 0, 7}).info().n_latents == 3);
  CHECK(model.with_threshold({sample.data(), tokens, d}).info().architecture == SAE_ARCHITECTURE_JUMP_RELU);
  fails(SAE_ERROR_UNSUPPORTED, "top_k", [&] { (void)model.fold_decoder_norms(); });
  fails(SAE_ERROR_INVALID_ARGUMENT, "activation_scale", [&] { (void)model.fold_activation_scale(2.0f); });

  int asked = 0;
  sae::Pool pool = sae::Pool::from_host(3, in_turn, &asked);
  CHECK(sae::Pool::create(1).threads() == 1 && pool.threads() == 3);
  sae_session_options options = SAE_SESSION_OPTIONS_INIT;
  options.max_tokens = tokens;
  options.slots = 2;
  options.pool = pool.get();
  CHECK(sae::Session::memory(model, &options).workspace > 0);
  sae::Session first = sae::Session::create(model, &options);
  sae::Session session = std::move(first);
  CHECK(session.kernels() != nullptr);

  const std::vector<float> x = numbers(tokens * d);
  sae::Features features(tokens, k, info.row_state_width);
  session.encode({x.data(), tokens, d}, features);
  CHECK(asked > 0 && features.counts()[0] == k && features.row(0).size() == k);
  float last = std::numeric_limits<float>::infinity();
  for (const auto [latent, value] : features.row(0)) {
    CHECK(latent >= 0 && latent < n && value > 0.0f && value <= last);
    last = value;
  }

  // Some tokens of a wider buffer, with an addend, are the same features.
  std::vector<float> wide(static_cast<std::size_t>(tokens * 2 * d)), half(x.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < d; ++j) wide[t * 2 * d + j] = half[t * d + j] = x[t * d + j] / 2;
  }
  sae::Features other(tokens, k, info.row_state_width);
  session.encode({{wide.data(), 5, d, 2 * d}, {half.data(), 5, d}}, other.slice(0, 5));
  session.encode({x.data() + 5 * d, tokens - 5, d}, other.slice(5, tokens - 5));
  CHECK(other.indices() == features.indices() && other.values() == features.values());

  std::vector<float> x_hat(x.size()), rebuilt(x.size());
  session.decode(features, {x_hat.data(), tokens, d});
  session.reconstruct({x.data(), tokens, d}, {rebuilt.data(), tokens, d});
  CHECK(x_hat == rebuilt);
  session.reconstruct({x.data(), tokens, d}, other, {rebuilt.data(), tokens, d});
  CHECK(x_hat == rebuilt && other.values() == features.values());
  std::vector<float> z(static_cast<std::size_t>(tokens * n)), selected(static_cast<std::size_t>(tokens));
  session.encode_dense({x.data(), tokens, d}, {z.data(), tokens, n});
  const std::vector<std::int32_t> ids = {features.indices()[0]};
  session.encode_selected({x.data(), tokens, d}, ids, {selected.data(), tokens, 1});
  CHECK(z[static_cast<std::size_t>(ids[0])] == features.values()[0] && selected[0] == features.values()[0]);
  session.merge({features}, other);
  CHECK(other.values() == features.values());

  ways_to_run(session, x, features);
  steer(session, model, x, features);

  const std::vector<float> w = numbers(n * d);
  sae_model_desc desc = SAE_MODEL_DESC_INIT;
  desc.architecture = SAE_ARCHITECTURE_RELU;
  desc.d_in = d;
  desc.n_latents = n;
  const sae::Model made = sae::Model::from_weights(desc, {{"W_enc", {w.data(), n, d}}, {"W_dec", {w.data(), n, d}}});
  CHECK(made.info().architecture == SAE_ARCHITECTURE_RELU);
  fails(SAE_ERROR_INVALID_ARGUMENT, "W_dec is missing", [&] {
    (void)sae::Model::from_weights(desc, {{"W_enc", {w.data(), n, d}}});
  });

  const sae::Report report = sae::Report::examine(made, {z.data(), tokens, d});
  CHECK(report.info().verdict == SAE_VERDICT_CANNOT_TELL && report.info().rows_given == tokens);
  CHECK(report.finding(0).code == SAE_FINDING_TOO_FEW_ROWS && report.json().front() == '{' && !report.text().empty());
  sae::Examination how;
  how.baseline = &report;
  how.positions = features.counts();
  CHECK(sae::Report::examine(made, {z.data(), tokens, d}, how).info().n_findings > 0);
  fails(SAE_ERROR_INVALID_ARGUMENT, "findings", [&] { (void)report.finding(99); });
  fails(SAE_ERROR_IO, "/no/such/file", [] { (void)sae::Model::load("/no/such/file"); });
  fails(SAE_ERROR_INVALID_TENSOR, "x: expected shape", [&] { session.encode({x.data(), tokens, d - 1}, features); });
  std::printf("ok\n");
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  CHECK(argc > 1);
  try {
    return run(argv[1]);
  } catch (const sae::Error &error) {
    std::fprintf(stderr, "%s: %s\n", sae_status_name(error.status()), error.what());
    return 1;
  }
}
