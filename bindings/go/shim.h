// What Go cannot say to C without allocating or pinning: tensors go over by value, so that the only Go pointers a call
// passes are arguments themselves, and errors come back as results.

#ifndef SAE_GO_SHIM_H
#define SAE_GO_SHIM_H

#include <sae.h>

typedef struct {
  void *data;
  int64_t shape[3];
  int64_t strides[3];
  sae_device device;
  sae_dtype dtype;
  int32_t ndim;
} go_tensor;

typedef struct {
  go_tensor values, indices, counts, row_state;
} go_features;

// The data of up to SAE_MAX_PARTS features, two tensors of each; their shapes come separately, in memory that holds no pointers. Beyond
// 1024 bytes Go would allocate to check it.
typedef struct {
  void *data[2 * SAE_MAX_PARTS];
} go_parts;

typedef struct {
  sae_train_stats stats;
  sae_error *error;
} go_step_result;

typedef struct {
  int64_t taken;
  sae_error *error;
} go_count_result;

static inline sae_tensor go_view(go_tensor *from) {
  sae_tensor view = {0};
  if (from->ndim == 0) return view;
  view.data = from->data;
  view.device = from->device;
  view.ndim = from->ndim;
  view.dtype = from->dtype;
  view.shape = from->shape;
  view.strides = from->strides;
  return view;
}

static inline sae_features go_features_view(go_features *from) {
  sae_features view = SAE_FEATURES_INIT;
  view.values = go_view(&from->values);
  view.indices = go_view(&from->indices);
  view.counts = go_view(&from->counts);
  view.row_state = go_view(&from->row_state);
  return view;
}

static inline const sae_tensor *go_optional(const sae_tensor *view) { return view->ndim == 0 ? NULL : view; }

static inline sae_error *go_encode(sae_session *session, sae_run run, go_tensor x, go_tensor addend, go_features out) {
  const sae_tensor x_ = go_view(&x), addend_ = go_view(&addend);
  const sae_features out_ = go_features_view(&out);
  sae_error *error = NULL;
  sae_encode(session, &run, &x_, go_optional(&addend_), &out_, &error);
  return error;
}

static inline sae_error *go_atlas_observe(const sae_atlas *atlas, go_features features, go_tensor tokens, const int64_t *documents,
                                          const int64_t *positions) {
  const sae_features features_ = go_features_view(&features);
  const sae_tensor tokens_ = go_view(&tokens);
  sae_error *error = NULL;
  sae_atlas_observe(atlas, &features_, &tokens_, documents, positions, &error);
  return error;
}

static inline sae_error *go_encode_selected(sae_session *session, sae_run run, go_tensor x, go_tensor addend, go_tensor ids,
                                            go_tensor out) {
  const sae_tensor x_ = go_view(&x), addend_ = go_view(&addend), ids_ = go_view(&ids), out_ = go_view(&out);
  sae_error *error = NULL;
  sae_encode_selected(session, &run, &x_, go_optional(&addend_), &ids_, &out_, &error);
  return error;
}

static inline sae_error *go_encode_dense(sae_session *session, sae_run run, go_tensor x, int32_t what, go_tensor z) {
  const sae_tensor x_ = go_view(&x), z_ = go_view(&z);
  sae_error *error = NULL;
  sae_encode_dense(session, &run, &x_, what, &z_, &error);
  return error;
}

static inline sae_error *go_decode(sae_session *session, sae_run run, go_features features, go_tensor x, go_tensor x_hat) {
  const sae_features features_ = go_features_view(&features);
  const sae_tensor x_ = go_view(&x), x_hat_ = go_view(&x_hat);
  sae_error *error = NULL;
  sae_decode(session, &run, &features_, go_optional(&x_), &x_hat_, &error);
  return error;
}

static inline sae_error *go_reconstruct(sae_session *session, sae_run run, go_tensor x, go_tensor addend, int wants_features,
                                        go_features out, go_tensor x_hat) {
  const sae_tensor x_ = go_view(&x), addend_ = go_view(&addend), x_hat_ = go_view(&x_hat);
  const sae_features out_ = go_features_view(&out);
  sae_error *error = NULL;
  sae_reconstruct(session, &run, &x_, go_optional(&addend_), wants_features ? &out_ : NULL, &x_hat_, &error);
  return error;
}

static inline sae_error *go_merge(sae_session *session, sae_run run, go_parts listed, go_parts rows, go_features *shapes,
                                  size_t n_parts, go_features out) {
  sae_features parts[SAE_MAX_PARTS];
  for (size_t i = 0; i < n_parts && i < SAE_MAX_PARTS; ++i) {
    parts[i] = go_features_view(&shapes[i]);
    parts[i].values.data = listed.data[2 * i];
    parts[i].indices.data = listed.data[2 * i + 1];
    parts[i].counts.data = rows.data[2 * i];
    parts[i].row_state.data = rows.data[2 * i + 1];
  }
  const sae_features out_ = go_features_view(&out);
  sae_error *error = NULL;
  sae_features_merge(session, &run, parts, n_parts, &out_, &error);
  return error;
}

static inline sae_error *go_set_edits(sae_session *session, int32_t slot, const sae_edit *edits, size_t n_edits) {
  sae_error *error = NULL;
  sae_set_edits(session, slot, edits, n_edits, &error);
  return error;
}

static inline sae_error *go_steer(sae_session *session, sae_run run, go_tensor x, go_tensor addend, go_tensor row_slot,
                                  int knows_features, go_features known, go_tensor y, go_tensor out) {
  const sae_tensor x_ = go_view(&x), addend_ = go_view(&addend), row_slot_ = go_view(&row_slot), y_ = go_view(&y),
                   out_ = go_view(&out);
  const sae_features known_ = go_features_view(&known);
  sae_steering steering = SAE_STEERING_INIT;
  steering.row_slot = go_optional(&row_slot_);
  steering.known = knows_features ? &known_ : NULL;
  steering.y = go_optional(&y_);
  steering.out = go_optional(&out_);
  sae_error *error = NULL;
  sae_steer(session, &run, &x_, go_optional(&addend_), &steering, &error);
  return error;
}

static inline go_step_result go_train_step(sae_trainer *trainer, sae_run run, go_tensor x, go_tensor addend, go_tensor target,
                                           go_tensor row_mask, uint32_t flags) {
  const sae_tensor x_ = go_view(&x), addend_ = go_view(&addend), target_ = go_view(&target), row_mask_ = go_view(&row_mask);
  sae_train_batch batch = SAE_TRAIN_BATCH_INIT;
  batch.x = &x_;
  batch.addend = go_optional(&addend_);
  batch.target = go_optional(&target_);
  batch.row_mask = go_optional(&row_mask_);
  batch.flags = flags;
  go_step_result result = {.stats = SAE_TRAIN_STATS_INIT};
  sae_train_step(trainer, &run, &batch, &result.stats, &result.error);
  return result;
}

static inline go_count_result go_buffer_push(const sae_buffer *buffer, go_tensor x, go_tensor addend, go_tensor row_mask,
                                             const int64_t *documents, int64_t first, uint32_t flags, int64_t wait_ms) {
  const sae_tensor x_ = go_view(&x), addend_ = go_view(&addend), row_mask_ = go_view(&row_mask);
  sae_buffer_rows rows = SAE_BUFFER_ROWS_INIT;
  rows.x = &x_;
  rows.addend = go_optional(&addend_);
  rows.row_mask = go_optional(&row_mask_);
  rows.documents = documents;
  rows.first = first;
  rows.flags = flags;
  go_count_result result = {0};
  sae_buffer_push(buffer, &rows, wait_ms, &result.taken, &result.error);
  return result;
}

static inline go_count_result go_buffer_take(const sae_buffer *buffer, go_tensor out, int64_t *documents, int64_t wait_ms) {
  const sae_tensor out_ = go_view(&out);
  go_count_result result = {0};
  sae_buffer_take(buffer, &out_, documents, wait_ms, &result.taken, &result.error);
  return result;
}

// Functions of the library that call Go, in callbacks.c.
sae_status go_log_set(int32_t level, sae_error **error);
sae_status go_pool_from_host(int32_t threads, uintptr_t context, sae_pool **out, sae_error **error);
void go_run_task(sae_task task, void *arg, size_t i);
void go_set_release(sae_load_options *options, uintptr_t context);

#endif
