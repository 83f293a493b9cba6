/* Trains an SAE by several processes, from a stream of planted features:
 *
 *   mpirun -n 4 train FOLDER latent_ranks=2 steps=60     2 x 2 ranks: tokens over 2, latents over 2
 *   mpirun -n 2 train FOLDER latent_ranks=2 steps=80     goes on from the checkpoint in FOLDER with other ranks
 *   compare: `train compare FOLDER FOLDER BOUND` tells how far apart two runs ended
 *
 * Every 10 steps a checkpoint is written into FOLDER; at the end rank 0 writes FOLDER/sae.safetensors. Exits with 7 if other ranks
 * are lost: after patience=SECONDS (10) in which one did not answer. kill=RANK at=STEP has one kill itself, hang=RANK stop. */

#define _POSIX_C_SOURCE 200809L

#include "communicator.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { D = 48, LATENTS = 250, K = 8, FEATURES = 160, ROWS = 96, SAMPLE = 512, EVERY = 10, LOST = 7 };

/* ---- The stream ------------------------------------------------------------------------------------------------------- */

/* Uniform in -1 to 1, by a hash of where it stands: all ranks have the same stream, and each takes its rows of it. */
static float noise(uint64_t stream, uint64_t i) {
  uint64_t state = stream * 0x9E3779B97F4A7C15u ^ i * 0xD1B54A32D192ED03u;
  for (int round = 0; round < 3; ++round) state = (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9u;
  return (float)(state >> 40) / 8388608.0f - 1.0f;
}

/* A row: a few of the planted directions, and noise. */
static void make_row(uint64_t row, float *x) {
  for (uint64_t j = 0; j < D; ++j) x[j] = 0.5f + 0.05f * noise(1, row * D + j);
  for (uint64_t part = 0; part < 5; ++part) {
    const uint64_t feature = (uint64_t)(fabsf(noise(2, row * 5 + part)) * (FEATURES - 1));
    const float strength = 0.5f + fabsf(noise(3, row * 5 + part));
    for (uint64_t j = 0; j < D; ++j) x[j] += strength * noise(4, feature * D + j);
  }
}

static void make_rows(uint64_t first, int64_t rows, float *x) {
  for (int64_t row = 0; row < rows; ++row) make_row(first + (uint64_t)row, x + row * D);
}

static sae_tensor tensor(const float *data, int64_t *shape) {
  sae_tensor made = {0};
  made.data = (void *)data;
  made.device.device_type = SAE_DEVICE_CPU;
  made.ndim = 2;
  made.dtype.code = SAE_DTYPE_FLOAT;
  made.dtype.bits = 32;
  made.dtype.lanes = 1;
  made.shape = shape;
  return made;
}

/* ---- The run ---------------------------------------------------------------------------------------------------------- */

static int64_t option(int argc, char **argv, const char *name, int64_t otherwise) {
  const size_t length = strlen(name);
  for (int i = 2; i < argc; ++i) {
    if (!strncmp(argv[i], name, length) && argv[i][length] == '=') return atoll(argv[i] + length + 1);
  }
  return otherwise;
}

typedef struct {
  const char *folder;
  int64_t steps, kill, hang, at;
  sae_collective ranks;
} run;

static sae_status start(const run *run, sae_trainer **trainer, sae_error **error) {
  sae_train_options options = SAE_TRAIN_OPTIONS_INIT;
  options.collective = &run->ranks;
  char file[4096];
  snprintf(file, sizeof file, "%s/checkpoint.safetensors", run->folder);
  if (access(file, F_OK) == 0) return sae_trainer_resume(run->folder, &options, trainer, error);
  options.d = D;
  options.n_latents = LATENTS;
  options.k = K;
  options.max_batch_tokens = ROWS;
  options.dead_after_tokens = 20 * ROWS;
  options.learning_rate = 2e-3f;
  options.clip_norm = 1;
  options.seed = 11;
  sae_status status = sae_trainer_create(&options, trainer, error);
  if (status != SAE_OK) return status;
  static float rows[SAMPLE * D];
  make_rows(1u << 30, SAMPLE, rows);
  int64_t shape[2] = {SAMPLE, D};
  const sae_tensor sample = tensor(rows, shape);
  return sae_trainer_init_from(*trainer, &sample, error);
}

/* Steps until the end, each rank with its part of every batch. */
static sae_status train(const run *run, sae_trainer *trainer, sae_error **error) {
  const int64_t place = run->ranks.rank / run->ranks.latent_ranks, count = run->ranks.data_ranks;
  const int64_t first = ROWS * place / count, rows = ROWS * (place + 1) / count - first;
  sae_train_stats stats = SAE_TRAIN_STATS_INIT;
  sae_train_progress progress = SAE_TRAIN_PROGRESS_INIT;
  sae_status status = sae_trainer_progress(trainer, &progress, error);
  for (int64_t step = (int64_t)progress.step; status == SAE_OK && step < run->steps; ++step) {
    if (step == run->at && run->ranks.rank == run->kill) raise(SIGKILL);
    if (step == run->at && run->ranks.rank == run->hang) raise(SIGSTOP);
    static float x[ROWS * D];
    make_rows((uint64_t)(step * ROWS + first), rows, x);
    int64_t shape[2] = {rows, D};
    const sae_tensor input = tensor(x, shape);
    sae_train_batch batch = SAE_TRAIN_BATCH_INIT;
    batch.x = &input;
    status = sae_train_step(trainer, NULL, &batch, &stats, error);
    if (status == SAE_OK && (step + 1) % EVERY == 0) status = sae_trainer_save(trainer, run->folder, error);
  }
  if (status == SAE_OK && run->ranks.rank == 0) {
    printf("step %d: FVU %.4f, L0 %.1f, %d dead\n", (int)stats.step, stats.fvu, stats.l0, (int)stats.dead);
  }
  return status;
}

/* All ranks take part in an export; one writes it. */
static sae_status export(const run *run, sae_trainer *trainer, sae_error **error) {
  sae_model *model = NULL;
  sae_status status = sae_trainer_export(trainer, SAE_EXPORT_WEIGHTS, &model, error);
  char file[4096];
  snprintf(file, sizeof file, "%s/sae.safetensors", run->folder);
  if (status == SAE_OK && run->ranks.rank == 0) status = sae_model_save(model, file, NULL, error);
  sae_model_free(model);
  return status;
}

/* ---- How far apart two runs are ---------------------------------------------------------------------------------------- */

static sae_status read_weights(const char *folder, int32_t which, float *out, sae_error **error) {
  char file[4096];
  snprintf(file, sizeof file, "%s/sae.safetensors", folder);
  sae_model *model = NULL;
  sae_status status = sae_model_load(file, NULL, &model, error);
  int64_t shape[2] = {LATENTS, D};
  const sae_tensor rows = tensor(out, shape);
  if (status == SAE_OK) status = sae_model_read(model, which, 0, LATENTS, &rows, error);
  sae_model_free(model);
  return status;
}

/* |W - W_ref| / |W_ref| for the encoder and the decoder. */
static int compare(const char *found, const char *expected, double bound) {
  static float a[LATENTS * D], b[LATENTS * D];
  const int32_t which[2] = {SAE_WEIGHT_W_ENC, SAE_WEIGHT_W_DEC};
  const char *names[2] = {"W_enc", "W_dec"};
  for (int i = 0; i < 2; ++i) {
    sae_error *error = NULL;
    if (read_weights(found, which[i], a, &error) || read_weights(expected, which[i], b, &error)) {
      fprintf(stderr, "%s\n", sae_error_message(error));
      sae_error_free(error);
      return 1;
    }
    double apart = 0, norm = 0;
    for (int j = 0; j < LATENTS * D; ++j) {
      apart += ((double)a[j] - b[j]) * ((double)a[j] - b[j]);
      norm += (double)b[j] * b[j];
    }
    const double relative = sqrt(apart / norm);
    printf("%s: %.1e apart, at most %.1e\n", names[i], relative, bound);
    if (!(relative <= bound)) return 1;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 5 && !strcmp(argv[1], "compare")) return compare(argv[2], argv[3], atof(argv[4]));
  if (argc < 2) {
    fprintf(stderr, "usage: mpirun -n RANKS train FOLDER [latent_ranks=N] [steps=N] [patience=SECONDS]\n");
    return 2;
  }
  MPI_Init(&argc, &argv);
  run run = {0};
  run.folder = argv[1];
  run.steps = option(argc, argv, "steps", 60);
  run.kill = option(argc, argv, "kill", -1);
  run.hang = option(argc, argv, "hang", -1);
  run.at = option(argc, argv, "at", -1);
  communicator communicator;
  const int64_t latent_ranks = option(argc, argv, "latent_ranks", 1), patience = option(argc, argv, "patience", 10);
  if (communicator_make(&communicator, &run.ranks, (int)latent_ranks, (double)patience) != MPI_SUCCESS) {
    fprintf(stderr, "latent_ranks must divide the number of ranks\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  sae_trainer *trainer = NULL;
  sae_error *error = NULL;
  sae_status status = start(&run, &trainer, &error);
  if (status == SAE_OK) status = train(&run, trainer, &error);
  if (status == SAE_OK) status = export(&run, trainer, &error);
  if (status != SAE_OK) {
    fprintf(stderr, "rank %d: %s\n", (int)run.ranks.rank, sae_error_message(error));
    fflush(stderr);
    /* MPI may still be writing into what the trainer holds, and would wait for those that are gone. */
    _exit(status == SAE_ERROR_COLLECTIVE ? LOST : 1);
  }
  sae_trainer_free(trainer);
  MPI_Finalize();
  return 0;
}
