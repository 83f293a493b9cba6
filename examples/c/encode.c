/* Makes a small SAE of weights in memory, and prints the features of two activation vectors.
 *
 *   gcc -std=c11 examples/c/encode.c $(pkg-config --cflags --libs libsae) -o encode && ./encode
 */

#include <sae.h>

#include <stdio.h>

/* Two latents over three dimensions: one for the first, one for the last. */
static const float directions[2][3] = {{1, 0, 0}, {0, 0, 1}};

static sae_tensor tensor(const void *data, uint8_t code, int32_t ndim, int64_t *shape) {
  sae_tensor made = {0};
  made.data = (void *)data;
  made.device.device_type = SAE_DEVICE_CPU;
  made.ndim = ndim;
  made.dtype.code = code;
  made.dtype.bits = 32;
  made.dtype.lanes = 1;
  made.shape = shape;
  return made;
}

static sae_status encode(sae_error **error) {
  sae_model *model = NULL;
  sae_session *session = NULL;

  int64_t weights_shape[2] = {2, 3};
  sae_model_desc desc = SAE_MODEL_DESC_INIT;
  desc.architecture = SAE_ARCHITECTURE_TOP_K;
  desc.d_in = 3;
  desc.n_latents = 2;
  desc.k = 2;
  sae_named_tensor weights[2];
  weights[0].name = "W_enc";
  weights[1].name = "W_dec";
  weights[0].tensor = weights[1].tensor = tensor(directions, SAE_DTYPE_FLOAT, 2, weights_shape);
  sae_status status = sae_model_from_weights(&desc, weights, 2, NULL, &model, error);
  if (status == SAE_OK) status = sae_session_create(model, NULL, &session, error);

  /* Two tokens, two slots each. */
  const float x[2][3] = {{0.5f, 9, 2}, {-1, 9, 3}};
  float values[2][2];
  int32_t indices[2][2], counts[2];
  int64_t x_shape[2] = {2, 3}, slots_shape[2] = {2, 2}, counts_shape[1] = {2};
  const sae_tensor input = tensor(x, SAE_DTYPE_FLOAT, 2, x_shape);
  sae_features features = SAE_FEATURES_INIT;
  features.values = tensor(values, SAE_DTYPE_FLOAT, 2, slots_shape);
  features.indices = tensor(indices, SAE_DTYPE_INT, 2, slots_shape);
  features.counts = tensor(counts, SAE_DTYPE_INT, 1, counts_shape);
  if (status == SAE_OK) status = sae_encode(session, NULL, &input, NULL, &features, error);

  for (int t = 0; status == SAE_OK && t < 2; ++t) {
    printf("token %d:", t);
    for (int slot = 0; slot < counts[t]; ++slot) printf("  latent %d: %g", (int)indices[t][slot], (double)values[t][slot]);
    printf("\n");
  }
  sae_session_free(session);
  sae_model_free(model);
  return status;
}

int main(void) {
  sae_error *error = NULL;
  const sae_status status = encode(&error);
  if (status != SAE_OK) fprintf(stderr, "%s: %s\n", sae_status_name(status), sae_error_message(error));
  sae_error_free(error);
  return status != SAE_OK;
}
