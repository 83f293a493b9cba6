/* Says that its activations are longer than they are: what AddressSanitizer has to see inside the library.
 * `overread examples/data read|write` */

#include <sae.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
  char path[4096];
  if (argc != 3) return 2;
  snprintf(path, sizeof path, "%s/sae.safetensors", argv[1]);
  sae_model *model = NULL;
  sae_session *session = NULL;
  if (sae_model_load(path, NULL, &model, NULL) || sae_session_create(model, NULL, &session, NULL)) return 3;

  enum { d = 576, k = 16, tokens = 4 };
  const int reads = strcmp(argv[2], "read") == 0;
  float *x = calloc((size_t)(reads ? tokens - 1 : tokens) * d, sizeof *x);
  float *values = calloc((size_t)(reads ? tokens : tokens - 1) * k, sizeof *values);
  int32_t *indices = calloc(tokens * k, sizeof *indices), *counts = calloc(tokens, sizeof *counts);
  if (!x || !values || !indices || !counts) return 3;
  int64_t x_shape[2] = {tokens, d}, slots_shape[2] = {tokens, k}, counts_shape[1] = {tokens};
  const sae_dtype f32 = {SAE_DTYPE_FLOAT, 32, 1}, i32 = {SAE_DTYPE_INT, 32, 1};
  const sae_device cpu = {SAE_DEVICE_CPU, 0};
  const sae_tensor of_x = {x, cpu, 2, f32, x_shape, NULL, 0};
  sae_features features = SAE_FEATURES_INIT;
  const sae_tensor of_values = {values, cpu, 2, f32, slots_shape, NULL, 0};
  const sae_tensor of_indices = {indices, cpu, 2, i32, slots_shape, NULL, 0};
  const sae_tensor of_counts = {counts, cpu, 1, i32, counts_shape, NULL, 0};
  features.values = of_values;
  features.indices = of_indices;
  features.counts = of_counts;
  const sae_status status = sae_encode(session, NULL, &of_x, NULL, &features, NULL);
  printf("not seen, status %d\n", (int)status);
  return 0;
}
