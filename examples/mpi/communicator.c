/* Every call is started without waiting and then asked after, so that it can be given up: plain MPI tells nobody that a rank is
 * gone. After a call was given up MPI may still write into its buffers, so the program must end without freeing the trainer. */

#define _POSIX_C_SOURCE 199309L

#include "communicator.h"

#include <time.h>

/* Asks after a call until it is done; looks less often when it takes long. */
static int32_t finish(const communicator *self, int started, MPI_Request *request) {
  if (started != MPI_SUCCESS) return started;
  const double begin = MPI_Wtime();
  for (;;) {
    int done = 0;
    const int status = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    if (status != MPI_SUCCESS) return status;
    if (done) return 0;
    const double waited = MPI_Wtime() - begin;
    if (waited > self->patience) return -1;
    if (waited > 1e-3) {
      const struct timespec pause = {0, 50 * 1000};
      nanosleep(&pause, NULL);
    }
  }
}

/* Counts are ints in MPI; the library's calls are far below that. */

static int32_t all_gather(void *context, int32_t axis, const void *mine, size_t bytes, void *all) {
  const communicator *self = context;
  MPI_Request request;
  const int count = (int)bytes;
  return finish(self, MPI_Iallgather(mine, count, MPI_BYTE, all, count, MPI_BYTE, self->axes[axis], &request), &request);
}

static int32_t all_reduce_sum(void *context, int32_t axis, float *values, size_t count) {
  const communicator *self = context;
  MPI_Request request;
  const int started =
      MPI_Iallreduce(MPI_IN_PLACE, values, (int)count, MPI_FLOAT, MPI_SUM, self->axes[axis], &request);
  return finish(self, started, &request);
}

static int32_t reduce_scatter_sum(void *context, int32_t axis, const float *values, float *mine, size_t count) {
  const communicator *self = context;
  MPI_Request request;
  const int started =
      MPI_Ireduce_scatter_block(values, mine, (int)count, MPI_FLOAT, MPI_SUM, self->axes[axis], &request);
  return finish(self, started, &request);
}

static int32_t all_reduce_min(void *context, int32_t axis, int64_t *values, size_t count) {
  const communicator *self = context;
  MPI_Request request;
  const int started =
      MPI_Iallreduce(MPI_IN_PLACE, values, (int)count, MPI_INT64_T, MPI_MIN, self->axes[axis], &request);
  return finish(self, started, &request);
}

static int32_t broadcast(void *context, int32_t axis, int32_t root, void *bytes, size_t count) {
  const communicator *self = context;
  MPI_Request request;
  return finish(self, MPI_Ibcast(bytes, (int)count, MPI_BYTE, root, self->axes[axis], &request), &request);
}

int communicator_make(communicator *made, sae_collective *table, int latent_ranks, double patience) {
  int rank, size;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (latent_ranks < 1 || size % latent_ranks != 0) return MPI_ERR_ARG;
  const int row = rank / latent_ranks, column = rank % latent_ranks;
  int status = MPI_Comm_split(MPI_COMM_WORLD, column, row, &made->axes[SAE_AXIS_DATA]);
  if (status == MPI_SUCCESS) status = MPI_Comm_split(MPI_COMM_WORLD, row, column, &made->axes[SAE_AXIS_LATENTS]);
  if (status != MPI_SUCCESS) return status;
  /* Errors come back as codes instead of ending the process. */
  for (int axis = 0; axis < 2; ++axis) MPI_Comm_set_errhandler(made->axes[axis], MPI_ERRORS_RETURN);
  made->patience = patience;
  *table = (sae_collective)SAE_COLLECTIVE_INIT;
  table->rank = rank;
  table->data_ranks = size / latent_ranks;
  table->latent_ranks = latent_ranks;
  table->context = made;
  table->all_gather = all_gather;
  table->all_reduce_sum = all_reduce_sum;
  table->reduce_scatter_sum = reduce_scatter_sum;
  table->all_reduce_min = all_reduce_min;
  table->broadcast = broadcast;
  return MPI_SUCCESS;
}
