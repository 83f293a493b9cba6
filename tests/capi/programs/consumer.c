/* A C11 program that uses every function of the library once, as a host would: `consumer DIRECTORY`. */

#include "sae.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* DLPack's structs, declared anew: a tensor of the host's is one of the library's. */
typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} DLTensor;
static_assert(sizeof(sae_tensor) == sizeof(DLTensor), "size");
static_assert(offsetof(sae_tensor, data) == offsetof(DLTensor, data), "data");
static_assert(offsetof(sae_tensor, device) == offsetof(DLTensor, device), "device");
static_assert(offsetof(sae_tensor, ndim) == offsetof(DLTensor, ndim), "ndim");
static_assert(offsetof(sae_tensor, dtype) == offsetof(DLTensor, dtype), "dtype");
static_assert(offsetof(sae_tensor, shape) == offsetof(DLTensor, shape), "shape");
static_assert(offsetof(sae_tensor, strides) == offsetof(DLTensor, strides), "strides");
static_assert(offsetof(sae_tensor, byte_offset) == offsetof(DLTensor, byte_offset), "byte_offset");
static_assert(sizeof(sae_edit) == 32, "an edit is 32 bytes");

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) {                                              \
      fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
      exit(1);                                                       \
    }                                                                \
  } while (0)

static sae_error *error;

/* Ends the program with the library's message if a call failed. */
#define OK(call)                                                                                              \
  do {                                                                                                        \
    if ((call) != SAE_OK) {                                                                                   \
      fprintf(stderr, "line %d: %s: %s\n", __LINE__, sae_status_name(sae_error_status(error)),                \
              sae_error_message(error));                                                                      \
      exit(1);                                                                                                \
    }                                                                                                         \
    CHECK(error == NULL);                                                                                     \
  } while (0)

/* That a call fails so, and says why. */
#define FAILS(expected, call)                           \
  do {                                                  \
    CHECK((call) == (expected));                        \
    CHECK(error != NULL);                               \
    CHECK(sae_error_status(error) == (expected));       \
    CHECK(strlen(sae_error_message(error)) > 0);        \
    sae_error_free(error);                              \
    error = NULL;                                       \
  } while (0)

enum { D = 16, N = 24, K = 3, T = 20, SAMPLE = 64 };

typedef struct {
  int64_t shape[2];
  sae_tensor tensor;
} matrix;

/* Describes rows x cols (cols 0: a vector) of 4-byte numbers. The tensor points into the matrix. */
static void describe(matrix *m, void *data, uint8_t code, int64_t rows, int64_t cols) {
  memset(m, 0, sizeof *m);
  m->shape[0] = rows;
  m->shape[1] = cols;
  m->tensor.data = data;
  m->tensor.device.device_type = SAE_DEVICE_CPU;
  m->tensor.ndim = cols ? 2 : 1;
  m->tensor.dtype.code = code;
  m->tensor.dtype.bits = 32;
  m->tensor.dtype.lanes = 1;
  m->tensor.shape = m->shape;
}

static uint32_t state = 12345;

static float number(void) {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static void fill(float *values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = number();
}

typedef struct {
  float values[T * K];
  int32_t indices[T * K], counts[T];
  matrix of_values, of_indices, of_counts;
  sae_features features;
} feature_block;

static void describe_features(feature_block *f) {
  const sae_features empty = SAE_FEATURES_INIT;
  describe(&f->of_values, f->values, SAE_DTYPE_FLOAT, T, K);
  describe(&f->of_indices, f->indices, SAE_DTYPE_INT, T, K);
  describe(&f->of_counts, f->counts, SAE_DTYPE_INT, T, 0);
  f->features = empty;
  f->features.values = f->of_values.tensor;
  f->features.indices = f->of_indices.tensor;
  f->features.counts = f->of_counts.tensor;
}

static void hear(int32_t level, const char *message, size_t length, void *context) {
  CHECK(level >= SAE_LOG_ERROR && level <= SAE_LOG_INFO && strlen(message) == length);
  ++*(int *)context;
}

static void in_turn(void *context, size_t n, sae_task task, void *arg) {
  ++*(int *)context;
  for (size_t i = n; i-- > 0;) task(arg, i);
}

static void count_release(void *context) { ++*(int *)context; }

static void train(const char *dir, const char *path) {
  static float x[SAMPLE * D];
  char checkpoint[1024];
  snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint", dir);
  matrix sample, batch_x, batch_mask;
  int32_t mask[T];
  sae_convention convention = SAE_CONVENTION_INIT;
  convention.model_name = "a model";
  convention.hook_point = "l_out-4";
  sae_train_options options = SAE_TRAIN_OPTIONS_INIT;
  options.d = D;
  options.n_latents = N;
  options.k = K;
  options.learning_rate = 1e-2f;
  options.dead_after_tokens = 100;
  options.convention = &convention;
  sae_trainer *trainer = NULL, *resumed = NULL;
  OK(sae_trainer_create(&options, &trainer, &error));
  fill(x, SAMPLE * D);
  describe(&sample, x, SAE_DTYPE_FLOAT, SAMPLE, D);
  OK(sae_trainer_init_from(trainer, &sample.tensor, &error));

  describe(&batch_x, x, SAE_DTYPE_FLOAT, T, D);
  describe(&batch_mask, mask, SAE_DTYPE_INT, T, 0);
  for (int t = 0; t < T; ++t) mask[t] = t != 0;
  sae_train_batch batch = SAE_TRAIN_BATCH_INIT;
  batch.x = &batch_x.tensor;
  batch.row_mask = &batch_mask.tensor;
  sae_train_stats stats = SAE_TRAIN_STATS_INIT;
  double first = 0;
  for (int step = 0; step < 30; ++step) {
    x[D] = step == 5 ? NAN : x[D + 1];
    batch.flags = step % 3 == 1 ? SAE_BATCH_ACCUMULATE : 0;
    OK(sae_train_step(trainer, NULL, &batch, &stats, &error));
    CHECK(stats.tokens + stats.tokens_masked + stats.tokens_not_finite == T);
    CHECK(stats.applied == (step % 3 != 1) && stats.l0 <= K && isfinite(stats.loss));
    if (step == 0) first = stats.mse;
  }
  CHECK(stats.step == 20 && stats.mse < first);
  OK(sae_trainer_save(trainer, checkpoint, &error));
  OK(sae_train_step(trainer, NULL, &batch, &stats, &error));

  /* A resumed run goes on to the same bits. */
  OK(sae_trainer_resume(checkpoint, NULL, &resumed, &error));
  sae_train_progress progress = SAE_TRAIN_PROGRESS_INIT;
  OK(sae_trainer_progress(resumed, &progress, &error));
  CHECK(progress.step == 20 && progress.started && progress.d == D && progress.n_latents == N && progress.k == K);
  OK(sae_train_step(resumed, NULL, &batch, NULL, &error));
  sae_model *one = NULL, *other = NULL, *average = NULL;
  OK(sae_trainer_export(trainer, SAE_EXPORT_WEIGHTS, &one, &error));
  OK(sae_trainer_export(resumed, SAE_EXPORT_WEIGHTS, &other, &error));
  OK(sae_trainer_export(resumed, SAE_EXPORT_EMA, &average, &error));
  static float a[N * D], b[N * D];
  matrix of_a, of_b;
  describe(&of_a, a, SAE_DTYPE_FLOAT, N, D);
  describe(&of_b, b, SAE_DTYPE_FLOAT, N, D);
  OK(sae_model_read(one, SAE_WEIGHT_W_DEC, 0, N, &of_a.tensor, &error));
  OK(sae_model_read(other, SAE_WEIGHT_W_DEC, 0, N, &of_b.tensor, &error));
  CHECK(memcmp(a, b, sizeof a) == 0);
  FAILS(SAE_ERROR_INVALID_ARGUMENT, sae_model_read(other, SAE_WEIGHT_W_DEC, 1, N, &of_b.tensor, &error));

  sae_save_options save = SAE_SAVE_OPTIONS_INIT;
  OK(sae_model_save(one, path, &save, &error));
  sae_trainer *warm = NULL;
  OK(sae_trainer_create(&options, &warm, &error));
  fill(x, SAMPLE * D);
  OK(sae_trainer_warm_start(warm, average, &sample.tensor, &error));
  sae_trainer_free(warm);
  sae_model_free(average);
  sae_model_free(other);
  sae_model_free(one);
  sae_trainer_free(resumed);
  sae_trainer_free(trainer);
}

static void borrow(void) {
  static float w_enc[N * D], w_dec[N * D];
  fill(w_enc, N * D);
  fill(w_dec, N * D);
  matrix of_enc, of_dec;
  describe(&of_enc, w_enc, SAE_DTYPE_FLOAT, N, D);
  describe(&of_dec, w_dec, SAE_DTYPE_FLOAT, N, D);
  const sae_named_tensor weights[2] = {{"W_enc", of_enc.tensor}, {"W_dec", of_dec.tensor}};
  sae_model_desc desc = SAE_MODEL_DESC_INIT;
  desc.architecture = SAE_ARCHITECTURE_RELU;
  desc.d_in = D;
  desc.n_latents = N;
  int released = 0;
  sae_load_options options = SAE_LOAD_OPTIONS_INIT;
  options.flags = SAE_LOAD_BORROW;
  options.release = count_release;
  options.release_context = &released;
  sae_model *model = NULL;
  OK(sae_model_from_weights(&desc, weights, 2, &options, &model, &error));
  sae_model_free(model);
  CHECK(released == 1);
}

int main(int argc, char **argv) {
  CHECK(argc > 1);
  char path[1024];
  snprintf(path, sizeof path, "%s/sae.safetensors", argv[1]);
  CHECK(sae_abi_version() == SAE_ABI_VERSION && strlen(sae_version()) > 0);
  int heard = 0, asked = 0;
  OK(sae_log_set(hear, SAE_LOG_INFO, &heard, &error));

  train(argv[1], path);
  borrow();

  sae_memory memory = SAE_MEMORY_INIT;
  OK(sae_model_memory(path, NULL, &memory, &error));
  sae_model *model = NULL;
  OK(sae_model_load(path, NULL, &model, &error));
  CHECK(heard >= 2);
  sae_info info = SAE_INFO_INIT;
  OK(sae_model_info(model, &info, &error));
  CHECK(info.architecture == SAE_ARCHITECTURE_TOP_K && info.d_in == D && info.n_latents == N && info.k == K);
  CHECK(info.bytes == memory.resident && strcmp(info.hook_point_transformer_lens, "blocks.4.hook_resid_post") == 0);

  sae_pool *pool = NULL, *own = NULL;
  OK(sae_pool_from_host(2, in_turn, &asked, &pool, &error));
  OK(sae_pool_create(2, &own, &error));
  CHECK(sae_pool_threads(own) == 2);
  sae_session_options session_options = SAE_SESSION_OPTIONS_INIT;
  session_options.max_tokens = T;
  session_options.slots = 2;
  session_options.pool = pool;
  OK(sae_session_memory(model, &session_options, &memory, &error));
  CHECK(memory.workspace > 0);
  session_options.kernels = sae_kernels_name(0);
  sae_session *session = NULL;
  OK(sae_session_create(model, &session_options, &session, &error));
  CHECK(strcmp(sae_session_kernels(session), "scalar") == 0);
  sae_pool_free(pool);

  static float x[T * D], x_hat[T * D], again[T * D], z[T * N], selected[T * 2];
  static feature_block f, g, merged;
  fill(x, T * D);
  x[2 * D] = INFINITY;
  matrix of_x, of_x_hat, of_again, of_z, of_selected, of_ids;
  describe(&of_x, x, SAE_DTYPE_FLOAT, T, D);
  describe(&of_x_hat, x_hat, SAE_DTYPE_FLOAT, T, D);
  describe(&of_again, again, SAE_DTYPE_FLOAT, T, D);
  describe(&of_z, z, SAE_DTYPE_FLOAT, T, N);
  describe(&of_selected, selected, SAE_DTYPE_FLOAT, T, 2);
  describe_features(&f);
  describe_features(&g);
  describe_features(&merged);
  OK(sae_encode(session, NULL, &of_x.tensor, NULL, &f.features, &error));
  CHECK(asked > 0 && f.counts[0] == K && f.counts[2] == -1 && f.indices[2 * K] == -1);
  OK(sae_decode(session, NULL, &f.features, NULL, &of_x_hat.tensor, &error));
  OK(sae_reconstruct(session, NULL, &of_x.tensor, NULL, &g.features, &of_again.tensor, &error));
  CHECK(memcmp(f.indices, g.indices, sizeof f.indices) == 0 && memcmp(f.values, g.values, sizeof f.values) == 0);
  CHECK(memcmp(x_hat, again, 2 * D * sizeof *x) == 0 && isnan(x_hat[2 * D]));
  OK(sae_encode_dense(session, NULL, &of_x.tensor, SAE_DENSE_ACTIVATIONS, &of_z.tensor, &error));
  CHECK(z[f.indices[0]] == f.values[0]);
  int32_t ids[2] = {f.indices[0], f.indices[1]};
  describe(&of_ids, ids, SAE_DTYPE_INT, 2, 0);
  OK(sae_encode_selected(session, NULL, &of_x.tensor, NULL, &of_ids.tensor, &of_selected.tensor, &error));
  CHECK(selected[0] == f.values[0] && selected[1] == f.values[1]);

  /* Half the latents on each of two shards, merged, are the whole. */
  static feature_block parts[2];
  sae_features both[2];
  for (int half = 0; half < 2; ++half) {
    sae_load_options shard = SAE_LOAD_OPTIONS_INIT;
    shard.first_latent = half * N / 2;
    shard.n_latents = N / 2;
    sae_model *part = NULL;
    sae_session *of_part = NULL;
    OK(sae_model_load(path, &shard, &part, &error));
    OK(sae_session_create(part, NULL, &of_part, &error));
    sae_model_free(part);
    describe_features(&parts[half]);
    OK(sae_encode(of_part, NULL, &of_x.tensor, NULL, &parts[half].features, &error));
    sae_session_free(of_part);
    both[half] = parts[half].features;
  }
  OK(sae_features_merge(session, NULL, both, 2, &merged.features, &error));
  CHECK(memcmp(f.indices, merged.indices, sizeof f.indices) == 0);
  CHECK(memcmp(f.values, merged.values, sizeof f.values) == 0);

  /* Each token steers by the slot of its request. */
  memcpy(again, x, sizeof x);
  int32_t slots[T];
  matrix of_slots;
  describe(&of_slots, slots, SAE_DTYPE_INT, T, 0);
  for (int t = 0; t < T; ++t) slots[t] = t % 3 - 1;
  sae_edit edits[1] = {{0}};
  edits[0].feature = f.indices[0];
  edits[0].op = SAE_EDIT_ADD;
  edits[0].strength = 2.0f;
  OK(sae_set_edits(session, 0, edits, 1, &error));
  edits[0].op = SAE_EDIT_ABLATE;
  OK(sae_set_edits(session, 1, edits, 1, &error));
  sae_steering steering = SAE_STEERING_INIT;
  steering.row_slot = &of_slots.tensor;
  steering.known = &f.features;
  OK(sae_steer(session, NULL, &of_again.tensor, NULL, &steering, &error));
  CHECK(memcmp(again, x, D * sizeof *x) == 0 && memcmp(again + D, x + D, D * sizeof *x) != 0);
  OK(sae_session_status(session, &error));
  OK(sae_session_wait(session, &error));

  /* What goes wrong is said, and nothing is written. */
  sae_run run = SAE_RUN_INIT;
  run.stream_kind = SAE_STREAM_HOST;
  FAILS(SAE_ERROR_UNSUPPORTED, sae_encode(session, &run, &of_x.tensor, NULL, &f.features, &error));
  FAILS(SAE_ERROR_INVALID_ARGUMENT, sae_encode(NULL, NULL, &of_x.tensor, NULL, &f.features, &error));
  FAILS(SAE_ERROR_INVALID_TENSOR, sae_encode(session, NULL, &of_z.tensor, NULL, &f.features, &error));
  FAILS(SAE_ERROR_IO, sae_model_load("/no/such/file", NULL, &model, &error));
  CHECK(sae_model_load("/no/such/file", NULL, &model, NULL) == SAE_ERROR_IO);

  sae_session_free(session);
  sae_model_free(model);
  sae_pool_free(own);
  printf("ok\n");
  return 0;
}
