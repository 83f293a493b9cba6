/* Encodes, rebuilds and steers real activations, and compares every bit with what is expected:
 *
 *   gcc -std=c11 examples/c/features.c $(pkg-config --cflags --libs libsae) -o features && ./features examples/data
 *
 * examples/data/README.md says what the files hold.
 */

#include <sae.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A matrix in memory, and its description for the library. */
typedef struct {
  int64_t shape[2];
  sae_tensor tensor;
} matrix;

static void describe(matrix *m, const void *data, uint8_t code, int64_t rows, int64_t cols) {
  memset(m, 0, sizeof *m);
  m->shape[0] = rows;
  m->shape[1] = cols;
  m->tensor.data = (void *)data;
  m->tensor.device.device_type = SAE_DEVICE_CPU;
  m->tensor.ndim = cols ? 2 : 1;
  m->tensor.dtype.code = code;
  m->tensor.dtype.bits = 32;
  m->tensor.dtype.lanes = 1;
  m->tensor.shape = m->shape;
}

/* Memory for `count` numbers of four bytes, zero; the program ends if there is none. */
static void *numbers(int64_t count) {
  void *made = calloc((size_t)count, 4);
  if (!made) {
    fprintf(stderr, "no memory for %lld numbers\n", (long long)count);
    exit(1);
  }
  return made;
}

/* The file `name` of the folder, which must hold exactly `count` numbers of four bytes. */
static void *read_numbers(const char *folder, const char *name, int64_t count) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  void *made = numbers(count + 1);
  const size_t found = file ? fread(made, 4, (size_t)count + 1, file) : 0;
  if (file) fclose(file);
  if (found != (size_t)count) {
    fprintf(stderr, "%s: expected %lld numbers, found %zu\n", path, (long long)count, found);
    exit(1);
  }
  return made;
}

/* Whether what was computed is what the file says, to the bit. */
static int same(const char *folder, const char *name, const void *computed, int64_t count) {
  void *expected = read_numbers(folder, name, count);
  const int equal = memcmp(expected, computed, (size_t)count * 4) == 0;
  printf("%s: %s\n", name, equal ? "the same bits" : "DIFFERENT");
  free(expected);
  return equal;
}

/* 1 if all is as expected, 0 if not; `*error` is set if a call failed. */
static int run(const char *folder, sae_error **error) {
  enum { tokens = 32 };
  char path[4096];
  snprintf(path, sizeof path, "%s/sae.safetensors", folder);
  sae_model *model = NULL;
  sae_session *session = NULL;
  sae_info info = SAE_INFO_INIT;
  if (sae_model_load(path, NULL, &model, error) || sae_model_info(model, &info, error) ||
      sae_session_create(model, NULL, &session, error)) {
    sae_model_free(model);
    return 0;
  }
  const int64_t d = info.d_in, k = info.k;
  printf("%lld latents of %s at %s (%s in llama.cpp)\n", (long long)info.n_latents, info.model_name, info.hook_point,
         info.hook_point_ggml);

  float *x = read_numbers(folder, "activations.f32", tokens * d), *x_hat = numbers(tokens * d);
  float *values = numbers(tokens * k);
  int32_t *indices = numbers(tokens * k), *counts = numbers(tokens);
  matrix of_x, of_x_hat, of_values, of_indices, of_counts;
  describe(&of_x, x, SAE_DTYPE_FLOAT, tokens, d);
  describe(&of_x_hat, x_hat, SAE_DTYPE_FLOAT, tokens, d);
  describe(&of_values, values, SAE_DTYPE_FLOAT, tokens, k);
  describe(&of_indices, indices, SAE_DTYPE_INT, tokens, k);
  describe(&of_counts, counts, SAE_DTYPE_INT, tokens, 0);
  sae_features features = SAE_FEATURES_INIT;
  features.values = of_values.tensor;
  features.indices = of_indices.tensor;
  features.counts = of_counts.tensor;

  enum { n_edits = 4 };
  sae_edit *edits = read_numbers(folder, "expected/edits.raw", n_edits * (int64_t)sizeof(sae_edit) / 4);
  int equal = 0;
  if (sae_encode(session, NULL, &of_x.tensor, NULL, &features, error) == SAE_OK &&
      sae_decode(session, NULL, &features, NULL, &of_x_hat.tensor, error) == SAE_OK &&
      sae_set_edits(session, 0, edits, n_edits, error) == SAE_OK &&
      sae_steer(session, NULL, &of_x.tensor, NULL, NULL, error) == SAE_OK) {
    printf("token 0:");
    for (int64_t slot = 0; slot < 4; ++slot) printf("  latent %d: %.3f", (int)indices[slot], (double)values[slot]);
    printf("\n");
    equal = same(folder, "expected/indices.i32", indices, tokens * k) & same(folder, "expected/values.f32", values, tokens * k) &
            same(folder, "expected/counts.i32", counts, tokens) & same(folder, "expected/x_hat.f32", x_hat, tokens * d) &
            same(folder, "expected/steered.f32", x, tokens * d);
  }
  free(x), free(x_hat), free(values), free(indices), free(counts), free(edits);
  sae_session_free(session);
  sae_model_free(model);
  return equal;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s examples/data\n", argv[0]);
    return 2;
  }
  sae_error *error = NULL;
  const int equal = run(argv[1], &error);
  if (error) fprintf(stderr, "%s: %s\n", sae_status_name(sae_error_status(error)), sae_error_message(error));
  sae_error_free(error);
  return equal ? 0 : 1;
}
