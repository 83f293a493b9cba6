/* MPI as the library's communicator: a grid of ranks over MPI_COMM_WORLD. */

#ifndef COMMUNICATOR_H
#define COMMUNICATOR_H

#include <mpi.h>
#include <sae.h>

typedef struct {
  MPI_Comm axes[2]; /* by SAE_AXIS_DATA and SAE_AXIS_LATENTS */
  double patience;  /* seconds after which a rank that does not answer is lost */
} communicator;

/* Fills the table in for `latent_ranks` ranks in a row of the grid, which must divide the size of the world. `made` must live
 * as long as what is made with the table. Returns an MPI error code. */
int communicator_make(communicator *made, sae_collective *table, int latent_ranks, double patience);

#endif
