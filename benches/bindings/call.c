/* What a call costs in C: nanoseconds of the smallest calls there are, one line each. See run.py. */

#define _POSIX_C_SOURCE 199309L
#include <sae.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { d = 8, n_latents = 16, k = 2, rounds = 40, calls = 2000 };

static sae_session *session;
static sae_tensor x, x_hat;
static sae_features features = SAE_FEATURES_INIT;

static sae_tensor tensor(void *data, uint8_t code, int32_t ndim, int64_t *shape) {
  sae_tensor made = {0};
  made.data = data;
  made.device.device_type = SAE_DEVICE_CPU;
  made.ndim = ndim;
  made.dtype.code = code;
  made.dtype.bits = 32;
  made.dtype.lanes = 1;
  made.shape = shape;
  return made;
}

static void check(sae_status status, sae_error *error) {
  if (status == SAE_OK) return;
  fprintf(stderr, "%s\n", sae_error_message(error));
  exit(1);
}

static void encode(void) {
  sae_error *error = NULL;
  check(sae_encode(session, NULL, &x, NULL, &features, &error), error);
}

static void decode(void) {
  sae_error *error = NULL;
  check(sae_decode(session, NULL, &features, NULL, &x_hat, &error), error);
}

static void steer(void) {
  sae_error *error = NULL;
  check(sae_steer(session, NULL, &x, NULL, NULL, &error), error);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* The fastest of some rounds. */
static void measure(const char *name, void (*call)(void)) {
  double best = 1e18;
  for (int round = 0; round < rounds; ++round) {
    const double start = now();
    for (int i = 0; i < calls; ++i) call();
    const double each = (now() - start) / calls;
    if (each < best) best = each;
  }
  printf("%s %.1f\n", name, best);
}

int main(void) {
  static float w[n_latents * d], activations[d], rebuilt[d], values[k];
  static int32_t indices[k], counts[1];
  for (int i = 0; i < n_latents * d; ++i) w[i] = (float)(i * 5 % 11 - 5);
  for (int i = 0; i < d; ++i) activations[i] = (float)(i + 1);
  int64_t of_w[] = {n_latents, d}, of_x[] = {1, d}, of_slots[] = {1, k}, of_counts[] = {1};

  sae_error *error = NULL;
  sae_model *model = NULL;
  sae_model_desc desc = SAE_MODEL_DESC_INIT;
  desc.architecture = SAE_ARCHITECTURE_TOP_K;
  desc.d_in = d;
  desc.n_latents = n_latents;
  desc.k = k;
  sae_named_tensor weights[] = {{"W_enc", tensor(w, SAE_DTYPE_FLOAT, 2, of_w)}, {"W_dec", tensor(w, SAE_DTYPE_FLOAT, 2, of_w)}};
  check(sae_model_from_weights(&desc, weights, 2, NULL, &model, &error), error);
  check(sae_session_create(model, NULL, &session, &error), error);
  x = tensor(activations, SAE_DTYPE_FLOAT, 2, of_x);
  x_hat = tensor(rebuilt, SAE_DTYPE_FLOAT, 2, of_x);
  features.values = tensor(values, SAE_DTYPE_FLOAT, 2, of_slots);
  features.indices = tensor(indices, SAE_DTYPE_INT, 2, of_slots);
  features.counts = tensor(counts, SAE_DTYPE_INT, 1, of_counts);

  measure("encode", encode);
  measure("decode", decode);
  measure("steer", steer);
  sae_session_free(session);
  sae_model_free(model);
  return 0;
}
