/* An engine's thread fills a shuffle buffer, another takes batches and trains two SAEs of different sizes: `buffer DIRECTORY`. */

#include "sae.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) {                                              \
      fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
      exit(1);                                                       \
    }                                                                \
  } while (0)

/* Ends the program with the library's message if a call failed. */
#define OK(call)                                                                \
  do {                                                                          \
    sae_error *error = NULL;                                                    \
    if ((call) != SAE_OK) {                                                     \
      fprintf(stderr, "line %d: %s\n", __LINE__, sae_error_message(error));     \
      exit(1);                                                                  \
    }                                                                           \
    CHECK(error == NULL);                                                       \
  } while (0)

enum { D = 8, ROWS = 3000, BATCH = 64 };

typedef struct {
  int64_t shape[2];
  sae_tensor tensor;
} matrix;

/* Describes rows x D of f32. The tensor points into the matrix. */
static void describe(matrix *m, float *data, int64_t rows) {
  memset(m, 0, sizeof *m);
  m->shape[0] = rows;
  m->shape[1] = D;
  m->tensor.data = data;
  m->tensor.device.device_type = SAE_DEVICE_CPU;
  m->tensor.ndim = 2;
  m->tensor.dtype.code = SAE_DTYPE_FLOAT;
  m->tensor.dtype.bits = 32;
  m->tensor.dtype.lanes = 1;
  m->tensor.shape = m->shape;
}

static float activations[ROWS * D];
static int64_t documents[ROWS];

/* Pushes all activations as they "flow by", 100 tokens at a time, of which some do not fit at once. */
static void *engine(void *shared) {
  const sae_buffer *buffer = shared;
  for (int64_t at = 0; at < ROWS; at += 100) {
    matrix of_x;
    describe(&of_x, activations + at * D, 100);
    sae_buffer_rows rows = SAE_BUFFER_ROWS_INIT;
    rows.x = &of_x.tensor;
    rows.documents = documents + at;
    while (rows.first < 100) {
      int64_t taken = -7;
      OK(sae_buffer_push(buffer, &rows, at % 200 ? SAE_WAIT_FOREVER : 1, &taken, &error));
      CHECK(taken >= 0 && taken <= 100 - rows.first);
      rows.first += taken;
    }
  }
  OK(sae_buffer_close(buffer, &error));
  return NULL;
}

static sae_trainer *trainer(int64_t n_latents, int64_t k) {
  sae_train_options options = SAE_TRAIN_OPTIONS_INIT;
  options.d = D;
  options.n_latents = n_latents;
  options.k = k;
  options.max_batch_tokens = BATCH;
  sae_trainer *made = NULL;
  OK(sae_trainer_create(&options, &made, &error));
  matrix sample;
  describe(&sample, activations + D, 500);
  OK(sae_trainer_init_from(made, &sample.tensor, &error));
  return made;
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  for (int row = 0; row < ROWS; ++row) {
    /* The first token of each document is an attention sink. */
    for (int i = 0; i < D; ++i) {
      activations[row * D + i] = (float)((row * 31 + i * 7 + row * i) % 97) / 97.0f - 0.5f + (row % 50 ? 0.0f : 500.0f);
    }
    documents[row] = row / 50;
  }

  sae_buffer_options options = SAE_BUFFER_OPTIONS_INIT;
  options.d = D;
  options.memory_bytes = 60000;
  options.spill_bytes = 200 * D * sizeof(float);
  options.spill_folder = argv[1];
  options.seed = 1;
  options.min_documents = 3;
  options.sink_multiple = 10.0f;
  options.flags = SAE_BUFFER_DOCUMENTS;
  sae_buffer_size size = SAE_BUFFER_SIZE_INIT;
  OK(sae_buffer_memory(&options, &size, &error));
  CHECK(size.capacity > 300 && size.capacity < ROWS && size.memory_bytes <= 60000);
  CHECK(size.spill_bytes == options.spill_bytes);

  sae_buffer *buffer = NULL;
  OK(sae_buffer_create(&options, &buffer, &error));
  sae_trainer *small = trainer(16, 2), *large = trainer(40, 4);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, engine, buffer) == 0);

  float x[BATCH * D];
  int64_t of[BATCH], taken = 0, given = 0;
  char path[4096];
  snprintf(path, sizeof path, "%s/buffer.safetensors", argv[1]);
  for (int batches = 0;; ++batches) {
    matrix out;
    describe(&out, x, BATCH);
    OK(sae_buffer_take(buffer, &out.tensor, of, SAE_WAIT_FOREVER, &taken, &error));
    if (taken == SAE_BUFFER_END) break;
    CHECK(taken > 0 && taken <= BATCH);
    given += taken;
    for (int64_t i = 0; i < taken; ++i) CHECK(of[i] >= 0 && of[i] < ROWS / 50 && x[i * D] < 1.0f);
    /* The same batch for both. */
    describe(&out, x, taken);
    sae_train_batch batch = SAE_TRAIN_BATCH_INIT;
    batch.x = &out.tensor;
    sae_train_stats stats = SAE_TRAIN_STATS_INIT;
    OK(sae_train_step(small, NULL, &batch, &stats, &error));
    CHECK(stats.tokens == (uint64_t)taken);
    OK(sae_train_step(large, NULL, &batch, &stats, &error));
    if (batches == 5) OK(sae_buffer_save(buffer, path, &error));
  }
  CHECK(pthread_join(thread, NULL) == 0);

  sae_buffer_state state = SAE_BUFFER_STATE_INIT;
  OK(sae_buffer_stats(buffer, &state, &error));
  CHECK(state.pushed == ROWS && state.sinks == ROWS / 50 && state.held == 0 && state.closed == 1);
  CHECK((int64_t)state.taken == given && given == ROWS - ROWS / 50);
  CHECK(state.median_norm > 0.1f && state.median_norm < 2.0f);

  /* Where a spill file goes is not for a saved file to say. */
  sae_buffer *nowhere = NULL;
  CHECK(sae_buffer_restore(path, NULL, &nowhere, NULL) != SAE_OK && nowhere == NULL);
  /* What was saved is there again, twice the same, all of it in memory or as before. */
  sae_buffer_options in_memory = SAE_BUFFER_OPTIONS_INIT;
  in_memory.memory_bytes = 1 << 20;
  float first[BATCH * D], second[BATCH * D];
  for (int time = 0; time < 2; ++time) {
    sae_buffer *again = NULL;
    OK(sae_buffer_restore(path, time ? &options : &in_memory, &again, &error));
    OK(sae_buffer_stats(again, &state, &error));
    CHECK(state.taken == 6 * BATCH && state.capacity == size.capacity);
    matrix out;
    describe(&out, time ? second : first, BATCH);
    OK(sae_buffer_close(again, &error));
    OK(sae_buffer_take(again, &out.tensor, NULL, 0, &taken, &error));
    CHECK(taken == BATCH);
    sae_buffer_free(again);
  }
  CHECK(memcmp(first, second, sizeof first) == 0);

  sae_trainer_free(small);
  sae_trainer_free(large);
  sae_buffer_free(buffer);
  sae_buffer_free(NULL);
  printf("ok\n");
  return 0;
}
