// libsae: sparse autoencoders (SAEs) inside the engine that runs a language model.
//
// The host hands in activations it already has in memory; the library encodes them into sparse features, decodes and
// steers by features, and trains new SAEs, in the same process and in the caller's memory.
//
//   sae_model *model = NULL;
//   sae_session *session = NULL;
//   sae_error *error = NULL;
//   if (sae_model_load("sae.safetensors", NULL, &model, &error) ||
//       sae_session_create(model, NULL, &session, &error) ||
//       sae_encode(session, NULL, &x, NULL, &features, &error)) {
//     fprintf(stderr, "%s\n", sae_error_message(error));
//     sae_error_free(error);
//   }
//   sae_session_free(session);
//   sae_model_free(model);
//
// Rules that hold for every function:
//
// * A call that can fail returns a status, 0 for success. The last argument, a `sae_error **`, may be NULL; it is written
//   on failure alone, and the caller frees what it then gets. On failure all outputs are as they were.
// * Options are structs that begin with their size: `sae_run run = SAE_RUN_INIT;`. Zero is the default of every field and
//   flag. NULL options are the defaults. Later versions append fields; older and newer callers are understood.
// * `const T *` handles may be used by many threads at once, `T *` by one at a time. Handles are freed by their own
//   function, which takes NULL.
// * Callbacks must not throw, and must be callable from every thread that calls the library, or that the host lends it.
// * On Linux the library cannot be unloaded: after dlclose it stays, since graphs that CUDA captured call back into it.
// * Texts are UTF-8. A pointer does not matter where its count is 0. Codes and flags that are not known are refused.
// * Shapes: T tokens, from 0 to a session's most; d_in, d_out: widths of vectors; n_latents: latents, and `width` slots
//   for the active ones of a token. A latent's index is global: in a shard too, it is the whole model's.
// * Hot calls (`sae_encode…`, `sae_decode`, `sae_reconstruct`, `sae_steer`, `sae_features_merge`, `sae_set_edits`)
//   allocate nothing, write only what the caller gave them, and give the same bits on any number of
//   threads, in any split of a batch and with any instruction set. An output equals its input exactly or does not overlap it.
//
// Generated from the library's sources; do not edit. In C++, sae.hpp is more comfortable.

#ifndef SAE_H
#define SAE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
// A struct of which all is zero but its size.
template <class T>
inline T sae_sized_struct() noexcept {
  T value{};
  value.struct_size = sizeof(T);
  return value;
}
#define SAE_SIZED_INIT(type) sae_sized_struct<type>()
extern "C" {
#else
#define SAE_SIZED_INIT(type) {.struct_size = sizeof(type)}
#endif

// ---- Statuses, errors, versions --------------------------------------------------------------------------------------

/// The ABI this header describes. A library of the same number runs programs compiled against any earlier header of it;
/// while it is 0, there are no promises yet.
#define SAE_ABI_VERSION 0

/// A failure: its status, and a message that names the thing, what was expected and what was found. Free it.
typedef struct sae_error sae_error;

/// What a call returns: `SAE_OK`, or what kind of failure it was.
typedef int32_t sae_status;

/// Done.
#define SAE_OK 0

/// An option, flag, count or pointer is not acceptable.
#define SAE_ERROR_INVALID_ARGUMENT 1
/// A tensor's data pointer, dtype, shape, strides, device or overlap is not acceptable.
#define SAE_ERROR_INVALID_TENSOR 2
/// What was asked for is understood, but this build, model or device does not do it.
#define SAE_ERROR_UNSUPPORTED 3
/// A file could not be opened, read or written.
#define SAE_ERROR_IO 4
/// A file was read, but its content is not what its format promises.
#define SAE_ERROR_FORMAT 5
/// Memory could not be had.
#define SAE_ERROR_OUT_OF_MEMORY 6
/// The device asked for is not there.
#define SAE_ERROR_NO_DEVICE 7
/// The device reported a fault, in this call or an earlier one.
#define SAE_ERROR_DEVICE_FAULT 8
/// A number that must be finite is not: a weight, a statistic, a loss.
#define SAE_ERROR_NOT_FINITE 9
/// The call does not fit the state the object is in.
#define SAE_ERROR_BAD_STATE 10
/// A fault of the library itself; please report it.
#define SAE_ERROR_INTERNAL 11
/// Other processes of the run could not be reached: one was lost, or the host's communicator failed.
#define SAE_ERROR_COLLECTIVE 12

/// The status of an error; `SAE_OK` for NULL.
sae_status sae_error_status(const sae_error *error);

/// The message of an error, valid until it is freed; "" for NULL.
const char *sae_error_message(const sae_error *error);

/// Frees an error; NULL is nothing.
void sae_error_free(sae_error *error);

/// The name of a status, such as "SAE_ERROR_IO"; "unknown status" for a number that is none. Never NULL.
const char *sae_status_name(sae_status status);

/// The ABI of the library that is loaded; compare with `SAE_ABI_VERSION`.
uint32_t sae_abi_version(void);

/// The release of the library that is loaded, such as "0.1.0".
const char *sae_version(void);

// ---- Log -------------------------------------------------------------------------------------------------------------

/// Something failed where no call could report it.
#define SAE_LOG_ERROR 1
/// Something was assumed that may be wrong, such as what a file does not say.
#define SAE_LOG_WARNING 2
/// Something was done: a model loaded, a checkpoint saved.
#define SAE_LOG_INFO 3

/// Gets a line of `length` bytes of UTF-8, also ended by a NUL that is not counted, without a line break. It is called on
/// the thread whose call has something to say, never under a lock, and may call the library.
typedef void (*sae_log_callback)(int32_t level, const char *message, size_t length, void *context);

/// Has everything up to `level` told to `callback`, for the whole process and for good: it can be set once, a second
/// call is refused with `SAE_ERROR_BAD_STATE`. `context` is handed back and must stay valid. Without it nothing is logged.
sae_status sae_log_set(sae_log_callback callback,
                       int32_t level,
                       void *context,
                       sae_error **error);

// ---- Tensors: borrowed views in DLPack's layout ----------------------------------------------------------------------

/// Ordinary host memory.
#define SAE_DEVICE_CPU 1
/// Memory of an NVIDIA GPU.
#define SAE_DEVICE_CUDA 2
/// Host memory pinned for CUDA; the CPU reads it like its own.
#define SAE_DEVICE_CUDA_HOST 3
/// CUDA managed memory.
#define SAE_DEVICE_CUDA_MANAGED 13

/// Signed integers; with 32 bits the type of indices.
#define SAE_DTYPE_INT 0
/// IEEE floating point: f32, f16.
#define SAE_DTYPE_FLOAT 2
/// bfloat16.
#define SAE_DTYPE_BFLOAT 4

/// A device, in DLPack's codes. All zero stands for the CPU where a device is chosen.
typedef struct sae_device {
  /// `SAE_DEVICE_CPU` and so on.
  int32_t device_type;
  /// Which of them; 0 for the CPU.
  int32_t device_id;
} sae_device;

/// An element type, in DLPack's codes: f32 is `{SAE_DTYPE_FLOAT, 32, 1}`, f16 `{SAE_DTYPE_FLOAT, 16, 1}`, bf16
/// `{SAE_DTYPE_BFLOAT, 16, 1}`, i32 `{SAE_DTYPE_INT, 32, 1}`. All zero stands for "as it is" where a type is chosen.
typedef struct sae_dtype {
  /// `SAE_DTYPE_FLOAT` and so on.
  uint8_t code;
  /// Bits of an element.
  uint8_t bits;
  /// 1.
  uint16_t lanes;
} sae_dtype;

/// A borrowed view of memory, laid out exactly like DLPack's `DLTensor`. 1 to 3 dimensions, of which the innermost has
/// stride 1; outer strides are free, but written rows must not overlap. A dimension may be 0; then nothing else matters. All
/// zero (`data` NULL, `ndim` 0) stands for an absent tensor. A call looks at it while it runs, not longer.
typedef struct sae_tensor {
  /// Start of the memory, aligned to an element with `byte_offset` added.
  void *data;
  /// Where the memory is.
  sae_device device;
  /// Number of dimensions.
  int32_t ndim;
  /// Type of an element.
  sae_dtype dtype;
  /// `ndim` lengths.
  int64_t *shape;
  /// `ndim` steps in elements, not negative; NULL: row-major without gaps.
  int64_t *strides;
  /// Bytes from `data` to the first element.
  uint64_t byte_offset;
} sae_tensor;

// ---- Features: which latents are active, and how strongly ------------------------------------------------------------

/// Sparse features of T tokens, in the caller's memory: for each token, up to `width` active latents. The shapes do not
/// depend on the data. Listed are the strongest first (ties: the lower index first), or by index with
/// `SAE_RUN_ORDER_INDEX`; if more are active than `width`, the strongest stay.
typedef struct sae_features {
  /// `sizeof(sae_features)`; `SAE_FEATURES_INIT` sets it.
  size_t struct_size;
  /// `[T, width]`, f32, f16 or bf16: activations; unused slots hold 0.
  sae_tensor values;
  /// `[T, width]`, i32: global indices of the latents; unused slots hold -1.
  sae_tensor indices;
  /// `[T]`, i32: how many latents were active, even if more than `width`; -1 if the token was not finite.
  sae_tensor counts;
  /// `[T, row_state_width]`, f32: what decoding needs of each token, see `sae_info`; absent if that width is 0.
  sae_tensor row_state;
} sae_features;

#define SAE_FEATURES_INIT SAE_SIZED_INIT(sae_features)

// ---- Threads ---------------------------------------------------------------------------------------------------------

/// Threads that sessions and trainers may share. Results do not depend on how many there are. Counted: sessions and
/// trainers keep what they need of it, so it may be freed before them.
typedef struct sae_pool sae_pool;

/// A piece of work that the library hands to the host's threads.
typedef void (*sae_task)(void *arg, size_t i);

/// The host's way to run things in parallel: calls `task(arg, i)` once for each `i` in `0..n`, in any order and on any
/// threads, possibly one after another, and returns when all are done. Must be callable from every thread that calls the
/// library with it.
typedef void (*sae_parallel_for)(void *context, size_t n, sae_task task, void *arg);

/// Makes a pool of `threads` threads, of which the calling one is the first and the others are the library's own; 0: one
/// per core. Handing work to the others takes a lock and wakes them; with one thread, or the host's, calls do neither. A
/// process made by fork has none of the others: it needs a pool of its own.
sae_status sae_pool_create(int32_t threads,
                           sae_pool **out,
                           sae_error **error);

/// Uses the host's threads through its own `parallel_for`, of which up to `threads` run at once. A call then takes no lock
/// and wakes no thread of the library's. `context` is handed back. Both must stay valid while the pool, or a session or
/// trainer made with it, lives.
sae_status sae_pool_from_host(int32_t threads,
                              sae_parallel_for parallel_for,
                              void *context,
                              sae_pool **out,
                              sae_error **error);

/// How many threads run at once; 0 for NULL.
int32_t sae_pool_threads(const sae_pool *pool);

/// Frees a pool; NULL is nothing.
void sae_pool_free(sae_pool *pool);

// ---- Models: immutable weights ---------------------------------------------------------------------------------------

/// What a file does not say.
#define SAE_UNKNOWN 0

/// It is so.
#define SAE_YES 1

/// It is not so.
#define SAE_NO -1

/// What a model's inputs must look like. A wrong convention fails silently: sizes fit, and the features are nonsense.
/// NULL, 0 and `SAE_UNKNOWN` mean that it is not known.
typedef struct sae_convention {
  /// `sizeof(sae_convention)`; `SAE_CONVENTION_INIT` sets it.
  size_t struct_size;
  /// The language model whose activations these are.
  const char *model_name;
  /// Where in it the input is read, as TransformerLens, Hugging Face or ggml name it: `blocks.8.hook_resid_post`,
  /// `model.layers.8`, `l_out-8`.
  const char *hook_point;
  /// Where the output belongs, if elsewhere (transcoders).
  const char *hook_point_out;
  /// Token positions left out of training, such as the attention sink at 0.
  const uint32_t *excluded_positions;
  /// How many of them.
  size_t n_excluded_positions;
  /// Tokens per context in training.
  uint32_t context_size;
  /// Whether texts began with the beginning-of-sequence token: `SAE_YES`, `SAE_NO`, `SAE_UNKNOWN`.
  int32_t prepend_bos;
  /// Whether the language model's writing weights were centred, so that inputs have mean 0. An engine's do not.
  int32_t centered_writing_weights;
  /// Whether the language model's LayerNorm weights were folded into the next layer.
  int32_t folded_layer_norm;
  /// What healthy inputs measure, for `sae_doctor` to compare with: fraction of variance unexplained.
  double reference_fvu;
  /// Active latents per token.
  double reference_l0;
  /// Median norm of the inputs.
  double reference_norm;
  /// The distance of the norms' quartiles, relative to the median.
  double reference_norm_spread;
} sae_convention;

#define SAE_CONVENTION_INIT SAE_SIZED_INIT(sae_convention)

/// Leave the matrices in the file and page them in as they are read. The file must then not change while the model lives.
#define SAE_LOAD_MAP 1
/// `sae_model_from_weights` uses the caller's matrices where they are, instead of copying them.
#define SAE_LOAD_BORROW 2
/// Subtract each token's mean, and add it back after decoding: for SAEs of models whose writing weights were centred
/// (`sae_info.centered_writing_weights`), fed by an engine that does not do that.
#define SAE_LOAD_CENTER 4

/// Active latents are chosen as the files say.
#define SAE_SELECTION_STORED 0
/// The k largest are active.
#define SAE_SELECTION_TOP_K 1
/// Those above the threshold are active.
#define SAE_SELECTION_THRESHOLD 2

/// Tells the owner of borrowed memory that nobody uses it any more. May come on any thread.
typedef void (*sae_release)(void *context);

/// How to load. NULL or all zero: everything as the file has it, copied into memory.
typedef struct sae_load_options {
  /// `sizeof(sae_load_options)`; `SAE_LOAD_OPTIONS_INIT` sets it.
  size_t struct_size;
  /// The format's name, to skip recognition; `sae_format_name` lists them.
  const char *format;
  /// Which model, where the path holds several: the name of a file, with or without its extension, or of a directory.
  const char *member;
  /// What the file does not say, or says wrongly: each field that is set replaces the file's.
  const sae_convention *convention;
  /// Load these of the stored latents alone; they keep their indices. For hosts that shard latents over devices.
  int64_t first_latent;
  /// How many from `first_latent` on; 0: all.
  int64_t n_latents;
  /// Load so many of the first latents alone, as a model of their own (Matryoshka: `sae_info.prefixes`); 0: all.
  int64_t prefix;
  /// How many latents are kept per token, for files that do not say it, or to use another number; 0: the file's.
  int64_t k;
  /// With `SAE_LOAD_BORROW`: called once, when the last user of the matrices is gone. Never if the call fails.
  sae_release release;
  /// Handed to `release`.
  void *release_context;
  /// Where the model shall live; zero: the CPU. On an NVIDIA GPU (`SAE_DEVICE_CUDA`) its weights are copied there, and the
  /// host keeps them too. Where there is none that serves: `SAE_ERROR_NO_DEVICE`, with the reason.
  sae_device device;
  /// The type to keep matrices in, f32, f16 or bf16; zero: as stored. Vectors are always f32.
  sae_dtype dtype;
  /// `SAE_LOAD_…`.
  uint32_t flags;
  /// The factor by which training multiplied activations, for files that say that there was one but not which; it
  /// is folded into the weights. 0: none.
  float activation_scale;
  /// `SAE_SELECTION_…`, for files that hold both a k and a threshold.
  int32_t selection;
  /// Whether b_dec is subtracted from the input, for files that do not say it, or to decide otherwise: `SAE_YES`,
  /// `SAE_NO`, `SAE_UNKNOWN`.
  int32_t subtract_b_dec;
  /// `SAE_NORMALIZATION_…`, for files that do not say what is done to each token before encoding; 0: as the file says.
  int32_t normalization;
} sae_load_options;

#define SAE_LOAD_OPTIONS_INIT SAE_SIZED_INIT(sae_load_options)

/// Keeps the `k` largest pre-activations that are positive.
#define SAE_ARCHITECTURE_TOP_K 1
/// Keeps every positive pre-activation.
#define SAE_ARCHITECTURE_RELU 2
/// Keeps a pre-activation that is positive and above its latent's threshold.
#define SAE_ARCHITECTURE_JUMP_RELU 3
/// Keeps the `k` pre-activations largest in magnitude, with their signs.
#define SAE_ARCHITECTURE_ABS_TOP_K 4
/// Keeps the largest of each of `k` groups of neighbouring latents, if it is positive.
#define SAE_ARCHITECTURE_GROUP_MAX 5
/// Keeps a positive pre-activation whose gate is open.
#define SAE_ARCHITECTURE_GATED 6

/// Inputs are taken as they are.
#define SAE_NORMALIZATION_NONE 0
/// Each token is brought to mean 0 and standard deviation 1, which decoding undoes.
#define SAE_NORMALIZATION_LAYER_NORM 1
/// Each token is scaled to norm sqrt(d), which decoding undoes.
#define SAE_NORMALIZATION_CONSTANT_NORM 2

/// b_dec is not subtracted from the input before encoding.
#define SAE_MODEL_KEEPS_B_DEC 1
/// Decoding does not undo the normalization of the input.
#define SAE_MODEL_STAYS_NORMALIZED 2
/// Pre-activations are multiplied by the norms of their decoder rows, activations divided by them before decoding.
#define SAE_MODEL_RESCALES 4
/// There is a skip path, W_skip, from the raw input to the output.
#define SAE_MODEL_HAS_SKIP 8
/// Each token's mean is subtracted before all else, and added back at the end.
#define SAE_MODEL_CENTERS 16
/// Latents are chosen by their pre-activations times the norms of their decoder rows; activations stay without the factor.
#define SAE_MODEL_SELECTS 32
/// Pre-activations are multiplied by the sigmoid of a second encoder's, W_glu and b_glu.
#define SAE_MODEL_HAS_GLU 64

/// Encoder directions, `[n_latents, d_in]`.
#define SAE_WEIGHT_W_ENC 1
/// Decoder directions, `[n_latents, d_out]`.
#define SAE_WEIGHT_W_DEC 2
/// Encoder biases, `[n_latents]`.
#define SAE_WEIGHT_B_ENC 3
/// The decoder's bias, `[d_out]`.
#define SAE_WEIGHT_B_DEC 4
/// JumpReLU's thresholds, `[n_latents]`.
#define SAE_WEIGHT_THRESHOLD 5
/// The skip path, `[d_out, d_in]`.
#define SAE_WEIGHT_W_SKIP 6
/// The second encoder of a GLU, `[n_latents, d_in]`.
#define SAE_WEIGHT_W_GLU 7
/// Its biases, `[n_latents]`.
#define SAE_WEIGHT_B_GLU 8
/// Logarithms of the factors of a gated SAE's magnitudes, `[n_latents]`; `SAE_WEIGHT_B_ENC` is their bias.
#define SAE_WEIGHT_R_MAG 9
/// Biases of a gated SAE's gates, `[n_latents]`.
#define SAE_WEIGHT_B_GATE 10

/// An SAE: what it is, and its weights. Never changes; any number of threads may use it at once. Counted: sessions keep the
/// weights they need, so it may be freed before them.
typedef struct sae_model sae_model;

/// Bytes that something needs.
typedef struct sae_memory {
  /// `sizeof(sae_memory)`; `SAE_MEMORY_INIT` sets it.
  size_t struct_size;
  /// Held as long as the object lives.
  uint64_t resident;
  /// Mapped from a file: address space, paged in as it is read.
  uint64_t mapped;
  /// The most that is allocated at any moment of making it, `resident` included.
  uint64_t peak;
  /// Of a session: working memory, in `resident` (on a GPU, in `device`) unless the host brings it with each call
  /// (`sae_run.workspace`).
  uint64_t workspace;
  /// Held in the GPU's memory, if the model is on one; of a model without the gaps between arrays. The host keeps the
  /// weights too (`resident`, or with `SAE_LOAD_MAP` `mapped`).
  uint64_t device;
} sae_memory;

/// How to save. NULL or all zero: in the library's own format, with the types that the matrices have.
typedef struct sae_save_options {
  /// `sizeof(sae_save_options)`; `SAE_SAVE_OPTIONS_INIT` sets it.
  size_t struct_size;
  /// The format's name, "native" if NULL; `sae_format_name` lists those that are written.
  const char *format;
  /// The type to write matrices in, f32, f16 or bf16; zero: as they are kept.
  sae_dtype dtype;
  /// 0.
  uint32_t flags;
} sae_save_options;

/// What a model is. Texts are valid until the model is freed, and NULL where nothing is known.
typedef struct sae_info {
  /// `sizeof(sae_info)`; `SAE_INFO_INIT` sets it.
  size_t struct_size;
  /// `SAE_ARCHITECTURE_…`.
  int32_t architecture;
  /// `SAE_NORMALIZATION_…`.
  int32_t normalization;
  /// `SAE_MODEL_…`.
  uint32_t flags;
  /// The type that matrices are kept in.
  sae_dtype dtype;
  /// Where the model lives.
  sae_device device;
  /// Width of the input; of a crosscoder, all its layers together.
  int64_t d_in;
  /// Width of the output; differs from `d_in` for transcoders and crosscoders alone.
  int64_t d_out;
  /// Layers of the language model that are read at once, each `d_in / layers_in` wide; 1 but for crosscoders.
  int64_t layers_in;
  /// Layers that are written at once.
  int64_t layers_out;
  /// Latents held here.
  int64_t n_latents;
  /// Index of the first of them; not 0 for a shard alone.
  int64_t first_latent;
  /// Latents of the whole model, if this is a shard of one; 0: it is whole.
  int64_t shard_of;
  /// Latents kept per token; 0 where the architecture has no such number.
  int64_t k;
  /// How many of the first latents make a smaller model, for each size that a Matryoshka SAE was trained at, ascending;
  /// valid until the model is freed.
  const int64_t *prefixes;
  /// How many of these sizes; 0 for others.
  size_t n_prefixes;
  /// Floats per token that features carry for decoding, `sae_features.row_state`: the token's mean, if the model
  /// subtracted one, then what it divided by (the deviation of `SAE_NORMALIZATION_LAYER_NORM`) or multiplied by
  /// (`sqrt(d) / norm` of `SAE_NORMALIZATION_CONSTANT_NORM`). 0 where decoding undoes nothing.
  int64_t row_state_width;
  /// Bytes of the weights.
  uint64_t bytes;
  /// The format it was loaded from, as `sae_format_name` names it; NULL if it came from no file.
  const char *format;
  /// What loading inferred, assumed or left aside, in words, one note a line; NULL if nothing.
  const char *notes;
  /// The language model whose activations it was trained on.
  const char *model_name;
  /// Where the input is read, as the file names it.
  const char *hook_point;
  /// The same as TransformerLens names it, where it was understood: `blocks.8.hook_resid_post`.
  const char *hook_point_transformer_lens;
  /// The same as the Hugging Face module whose output it is: `model.layers.8`.
  const char *hook_point_hugging_face;
  /// The same as the tensor of llama.cpp's graph: `l_out-8`.
  const char *hook_point_ggml;
  /// Where the output belongs, if elsewhere (transcoders), as the file names it.
  const char *hook_point_out;
  /// The same as TransformerLens names it.
  const char *hook_point_out_transformer_lens;
  /// The same as the Hugging Face module whose output it is.
  const char *hook_point_out_hugging_face;
  /// The same as the tensor of llama.cpp's graph.
  const char *hook_point_out_ggml;
  /// Token positions left out of training; valid until the model is freed.
  const uint32_t *excluded_positions;
  /// How many of them.
  size_t n_excluded_positions;
  /// Tokens per context in training; 0: unknown.
  uint32_t context_size;
  /// Whether texts began with the beginning-of-sequence token: `SAE_YES`, `SAE_NO`, `SAE_UNKNOWN`.
  int32_t prepend_bos;
  /// Whether the language model's writing weights were centred, so that inputs have mean 0. An engine's do not.
  int32_t centered_writing_weights;
  /// Whether the language model's LayerNorm weights were folded into the next layer.
  int32_t folded_layer_norm;
} sae_info;

/// Loads a model from a file, or from a directory that holds one; `path` is UTF-8. The format is recognised by content.
/// A file that is not sound is refused with `SAE_ERROR_FORMAT`, weights that are not finite with `SAE_ERROR_NOT_FINITE`.
sae_status sae_model_load(const char *path,
                          const sae_load_options *options,
                          sae_model **out,
                          sae_error **error);

/// Tells what loading a file with these options would need; no weight is read.
sae_status sae_model_memory(const char *path,
                            const sae_load_options *options,
                            sae_memory *out,
                            sae_error **error);

/// Saves a model, in the library's own format (a safetensors file) unless another is named; `path` is a directory where the
/// format is one. Files appear whole or not at all: on failure, what was there is untouched. What a format cannot say is
/// refused by name, with `SAE_ERROR_UNSUPPORTED`.
sae_status sae_model_save(const sae_model *model,
                          const char *path,
                          const sae_save_options *options,
                          sae_error **error);

/// Tells what a model is.
sae_status sae_model_info(const sae_model *model, sae_info *out, sae_error **error);

/// Copies weights: `rows` rows of a matrix into `out` `[rows, columns]`, or as many numbers of a vector into `out` `[rows]`, in
/// f32, f16 or bf16. `first` is the index of the first latent, or of the first row or number where there are no latents.
sae_status sae_model_read(const sae_model *model,
                          int32_t which,
                          int64_t first,
                          int64_t rows,
                          const sae_tensor *out,
                          sae_error **error);

/// Frees a model; NULL is nothing.
void sae_model_free(sae_model *model);

#define SAE_SAVE_OPTIONS_INIT SAE_SIZED_INIT(sae_save_options)
#define SAE_MEMORY_INIT SAE_SIZED_INIT(sae_memory)
#define SAE_INFO_INIT SAE_SIZED_INIT(sae_info)

// ---- Models of weights in memory -------------------------------------------------------------------------------------

/// What a model made of weights in memory shall be.
typedef struct sae_model_desc {
  /// `sizeof(sae_model_desc)`; `SAE_MODEL_DESC_INIT` sets it.
  size_t struct_size;
  /// Width of the input; of a crosscoder, all its layers together.
  int64_t d_in;
  /// Width of the output; 0: `d_in`.
  int64_t d_out;
  /// Layers of the language model that are read at once; 0: one.
  int64_t layers_in;
  /// Layers that are written at once; 0: one.
  int64_t layers_out;
  /// Latents given.
  int64_t n_latents;
  /// Index of the first of them, if they are a shard of a larger model.
  int64_t first_latent;
  /// Latents of that larger model; 0: this is no shard.
  int64_t shard_of;
  /// Latents kept per token, for `SAE_ARCHITECTURE_TOP_K`, `_ABS_TOP_K` and `_GROUP_MAX` (groups) alone.
  int64_t k;
  /// How many of the first latents make a smaller model, for each size that a Matryoshka SAE was trained at, ascending up
  /// to all.
  const int64_t *prefixes;
  /// How many of these sizes; 0 for others.
  size_t n_prefixes;
  /// What the inputs must look like; NULL: not known.
  const sae_convention *convention;
  /// `SAE_ARCHITECTURE_…`.
  int32_t architecture;
  /// `SAE_NORMALIZATION_…`.
  int32_t normalization;
  /// `SAE_MODEL_KEEPS_B_DEC`, `_STAYS_NORMALIZED`, `_RESCALES`, `_SELECTS`, `_CENTERS`. A skip path is there if W_skip is
  /// given, a GLU encoder if W_glu is.
  uint32_t flags;
  /// 0.
  uint32_t reserved;
} sae_model_desc;

/// A weight tensor with its name: "W_enc" `[n_latents, d_in]`, "W_dec" `[n_latents, d_out]`, "b_enc" `[n_latents]`, "b_dec" `[d_out]`,
/// "threshold" `[n_latents]` for JumpReLU, "r_mag" and "b_gate" `[n_latents]` for a gated SAE (whose "b_enc" is the bias of the
/// magnitudes), "W_glu" `[n_latents, d_in]` and "b_glu" `[n_latents]` for a GLU encoder, "W_skip" `[d_out, d_in]` for a skip path.
/// f32, f16 or bf16; in the large matrices a latent is a row. "b_enc", "b_dec" and "b_glu" are 0 if they are not given.
typedef struct sae_named_tensor {
  /// The name.
  const char *name;
  /// The numbers.
  sae_tensor tensor;
} sae_named_tensor;

/// Makes a model of weights in memory, which are copied, or with `SAE_LOAD_BORROW` (in `options`) used where they are: then they
/// must stay as they are until `release` is called, matrices must have no gaps between rows, and vectors are copied still.
sae_status sae_model_from_weights(const sae_model_desc *desc,
                                  const sae_named_tensor *weights,
                                  size_t n_weights,
                                  const sae_load_options *options,
                                  sae_model **out,
                                  sae_error **error);

#define SAE_MODEL_DESC_INIT SAE_SIZED_INIT(sae_model_desc)

// ---- Models made into others -----------------------------------------------------------------------------------------

/// Makes a model whose decoder rows have norm 1, the norms moved into its encoder. Reconstructions stay the same; so do
/// features where the norms multiplied them already (`SAE_MODEL_RESCALES`), else they grow by the norms. Refused where
/// other latents would win then (TopK and its like without `SAE_MODEL_RESCALES` or `SAE_MODEL_SELECTS`).
sae_status sae_model_fold_decoder_norms(const sae_model *model,
                                        sae_model **out,
                                        sae_error **error);

/// Makes a model that takes x as this one takes `x · scale`, and gives its outputs on the scale of x.
sae_status sae_model_fold_activation_scale(const sae_model *model,
                                           float scale,
                                           sae_model **out,
                                           sae_error **error);

/// Makes a model that keeps another number of latents per token.
sae_status sae_model_with_k(const sae_model *model, int64_t k, sae_model **out, sae_error **error);

/// Makes a model of the latents `ids` alone, numbered from 0 in that order. Where latents compete, they now compete among
/// themselves, with the same k; of GroupMax, whole groups can be taken.
sae_status sae_model_subset(const sae_model *model,
                            const int32_t *ids,
                            size_t n_ids,
                            sae_model **out,
                            sae_error **error);

/// Makes a model of the first `n_latents` latents: for Matryoshka SAEs one of `sae_info.prefixes`.
sae_status sae_model_prefix(const sae_model *model, int64_t n_latents, sae_model **out, sae_error **error);

/// Makes a JumpReLU model of a TopK one, whose latents then do not compete: their one threshold is such that on the
/// tokens of `sample` `[T, d_in]` (f32, f16, bf16; those that are not finite are left out) k latents are active on average.
/// `pool` NULL: the calling thread alone.
sae_status sae_model_with_threshold(const sae_model *model,
                                    const sae_tensor *sample,
                                    const sae_pool *pool,
                                    sae_model **out,
                                    sae_error **error);

/// The name of a format that is read, by its number from 0 on; NULL after the last. `writes`, unless it is NULL, becomes 1 if
/// models are saved in it too, else 0.
const char *sae_format_name(size_t number,
                            int32_t *writes);

// ---- Sessions: encode and decode -------------------------------------------------------------------------------------

/// Allow scores that are repeatable on one device but not bit for bit the same on all. The CPU's are the same anyway.
#define SAE_RUN_FAST 1
/// List features by index instead of strongest first.
#define SAE_RUN_ORDER_INDEX 2
/// Round `x + addend` to x's type, as engines do that write the sum back before they read it.
#define SAE_RUN_ROUND_SUM 4

/// The session's own stream. `sae_session_wait` waits for what is on it; what a call reads must be there before the call.
#define SAE_STREAM_SESSION 0
/// The host's, in `sae_run.stream`, of which NULL is the default one; for models on a GPU alone. It must be of the device's
/// primary context. Calls of one session come one after another on the device, whatever their streams, and so do its edits.
/// While the stream is captured, calls become part of the graph, whose launches take their turn likewise.
#define SAE_STREAM_HOST 1
/// The session's own stream, and the call returns when the work is done. On the CPU, calls always do.
#define SAE_STREAM_SYNCHRONOUS 2

/// How one call runs. NULL or all zero: as the session was made.
typedef struct sae_run {
  /// `sizeof(sae_run)`; `SAE_RUN_INIT` sets it.
  size_t struct_size;
  /// `SAE_RUN_…`, added to the session's.
  uint32_t flags;
  /// `SAE_STREAM_…`.
  int32_t stream_kind;
  /// The host's stream, with `SAE_STREAM_HOST`.
  void *stream;
  /// Working memory for this call, aligned to 64 bytes, instead of the session's; on a GPU, of its memory and aligned to 256
  /// bytes. May be shared by sessions that run one after another. Must not overlap the tensors.
  void *workspace;
  /// Its bytes; `sae_session_memory` says how many are needed.
  size_t workspace_size;
} sae_run;

#define SAE_RUN_INIT SAE_SIZED_INIT(sae_run)

/// The host brings working memory with each call; the session keeps none.
#define SAE_SESSION_HOST_WORKSPACE 1
/// No copy of W_enc as bytes. By default encoding first bounds every score by products of 8-bit integers (on a GPU of bf16), where that is faster
/// and the architecture allows it, and takes exact scores only of latents that can still matter: results are the same to the
/// bit. The copy takes `n_latents * d_in` bytes and a little more (on a GPU twice as many, or none of weights in bf16), which
/// all sessions of a model share.
#define SAE_SESSION_NO_SCREEN 2
/// Such a copy even where W_enc is a mapped file's, which by default is not copied into memory, or where it is slower.
#define SAE_SESSION_SCREEN 4

/// Activations: 0 where a latent is not active.
#define SAE_DENSE_ACTIVATIONS 0
/// Pre-activations.
#define SAE_DENSE_PRE_ACTIVATIONS 1

/// The most shards that `sae_features_merge` takes.
#define SAE_MAX_PARTS 64

/// One stream of work over one model: working memory and the hot calls, which allocate nothing. For one thread at a
/// time; a call that comes while another runs is refused with `SAE_ERROR_BAD_STATE`. Sessions are independent of each other.
typedef struct sae_session sae_session;

/// What a session is made for. NULL or all zero: the defaults.
typedef struct sae_session_options {
  /// `sizeof(sae_session_options)`; `SAE_SESSION_OPTIONS_INIT` sets it.
  size_t struct_size;
  /// The most tokens per call; 0: 512. More are an error, not a silent split.
  int64_t max_tokens;
  /// The most slots per token in features; 0: k for TopK, else 1024, at most `n_latents`.
  int64_t max_width;
  /// How many lists of edits there can be; 0: 1.
  int64_t slots;
  /// How many edits a list can have; 0: 16.
  int64_t edits_per_slot;
  /// Who computes on the CPU; NULL: the calling thread alone.
  const sae_pool *pool;
  /// `SAE_SESSION_…`.
  uint32_t flags;
  /// `SAE_RUN_…` for every call.
  uint32_t run_flags;
  /// The instruction set, by a name that `sae_kernels_name` lists; NULL: the fastest, or what the environment variable
  /// `SAE_KERNELS` names. Results are the same to the bit.
  const char *kernels;
} sae_session_options;

/// Makes a session, with all the memory its calls will need.
sae_status sae_session_create(const sae_model *model,
                              const sae_session_options *options,
                              sae_session **out,
                              sae_error **error);

/// Tells what such a session would need; a copy of W_enc that sessions of the model share is counted for each.
sae_status sae_session_memory(const sae_model *model,
                              const sae_session_options *options,
                              sae_memory *out,
                              sae_error **error);

/// Sparse features of each token of `x` `[T, d_in]`, or of `x + addend` if `addend` is not NULL (the sum is formed in f32). A token
/// that is not finite gets no features and count -1; the call succeeds.
sae_status sae_encode(sae_session *session,
                      const sae_run *run,
                      const sae_tensor *x,
                      const sae_tensor *addend,
                      const sae_features *out,
                      sae_error **error);

/// Activations of the latents `ids` `[m]` (i32, global indices) alone, into `out` `[T, m]`. With TopK, a latent that is not among a
/// token's k largest has activation 0. An id out of range counts as inactive; a token that is not finite gives NaN.
sae_status sae_encode_selected(sae_session *session,
                               const sae_run *run,
                               const sae_tensor *x,
                               const sae_tensor *addend,
                               const sae_tensor *ids,
                               const sae_tensor *out,
                               sae_error **error);

/// All activations or pre-activations, into `z` `[T, n_latents]`. A token that is not finite gives NaN.
sae_status sae_encode_dense(sae_session *session,
                            const sae_run *run,
                            const sae_tensor *x,
                            int32_t what,
                            const sae_tensor *z,
                            sae_error **error);

/// Activation vectors from features, into `x_hat` `[T, d_out]`. `x` is the raw input, which models with a skip path need; else it may
/// be NULL. A token with count -1 gives NaN; an index out of range is left out and counted, see `sae_session_status`.
sae_status sae_decode(sae_session *session,
                      const sae_run *run,
                      const sae_features *features,
                      const sae_tensor *x,
                      const sae_tensor *x_hat,
                      sae_error **error);

/// Encodes and decodes at once, from all active latents; `x_hat` may be `x` itself. `out` (NULL: not wanted) gets as many
/// features as fit it.
sae_status sae_reconstruct(sae_session *session,
                           const sae_run *run,
                           const sae_tensor *x,
                           const sae_tensor *addend,
                           const sae_features *out,
                           const sae_tensor *x_hat,
                           sae_error **error);

/// Features of latent shards of a model, under global indices, into those of the whole. `parts` is an array of `n_parts`
/// structs, of equal `struct_size`.
sae_status sae_features_merge(sae_session *session,
                              const sae_run *run,
                              const sae_features *parts,
                              size_t n_parts,
                              const sae_features *out,
                              sae_error **error);

/// Faults of the device, and indices and slots out of range that calls took for -1 since the session was made. Never waits.
/// `SAE_OK`: none.
sae_status sae_session_status(sae_session *session,
                              sae_error **error);

/// Waits until everything that the session was asked for is done, on whatever stream: its own calls and edits, those on the
/// host's streams, and launches of graphs that calls were captured into. Tells a fault of the device. On the CPU calls are done
/// when they return.
sae_status sae_session_wait(sae_session *session,
                            sae_error **error);

/// The name of an instruction set that this machine runs, by its number from 0 on, slowest first; NULL after the last.
const char *sae_kernels_name(size_t number);

/// The name of the instruction set that a session uses, if it computes on the CPU; NULL for NULL.
const char *sae_session_kernels(const sae_session *session);

/// Frees a session; NULL is nothing. On a GPU, what it was asked for is waited for first; a graph that calls were captured into
/// keeps what it needs of the session and its model, and may be launched on.
void sae_session_free(sae_session *session);

#define SAE_SESSION_OPTIONS_INIT SAE_SIZED_INIT(sae_session_options)

// ---- Steering: activations changed by their features -----------------------------------------------------------------

/// Add `strength` to the activation, active or not.
#define SAE_EDIT_ADD 0
/// Make the activation `strength`.
#define SAE_EDIT_SET 1
/// Multiply the activation by `strength`.
#define SAE_EDIT_SCALE 2
/// Make the activation 0.
#define SAE_EDIT_ABLATE 3
/// Leave tokens alone on which the latent is not active.
#define SAE_EDIT_ONLY_ACTIVE 1

/// One change to one latent. 32 bytes.
typedef struct sae_edit {
  /// Index of the latent.
  int32_t feature;
  /// `SAE_EDIT_ADD`, `SAE_EDIT_SET`, `SAE_EDIT_SCALE`, `SAE_EDIT_ABLATE`.
  int32_t op;
  /// By how much, in units of the latent's activation.
  float strength;
  /// The change of the activation is clamped to ±`limit`; 0: no limit.
  float limit;
  /// `SAE_EDIT_ONLY_ACTIVE`.
  uint32_t flags;
  /// 0.
  uint32_t reserved[3];
} sae_edit;

/// Whom to steer, and where. NULL or all zero: every token by slot 0, in place.
typedef struct sae_steering {
  /// `sizeof(sae_steering)`; `SAE_STEERING_INIT` sets it.
  size_t struct_size;
  /// `[T]`, i32: each token's slot; -1: leave it alone. NULL: slot 0 for all.
  const sae_tensor *row_slot;
  /// Features of these tokens, if they are already encoded; NULL: what the edits need is computed.
  const sae_features *known;
  /// `[T, d_out]`: what is edited; NULL: `x`. For a transcoder, x is read at one place and y written at another.
  const sae_tensor *y;
  /// `[T, d_out]`, of y's type: where the result goes; NULL: y, in place.
  const sae_tensor *out;
} sae_steering;

/// Replaces the list of edits in a slot; none: the slot steers nothing. The edits are copied. A list may not name a latent
/// twice. On failure the old list stays, but for `SAE_ERROR_DEVICE_FAULT`: then the
/// slot's list is the old one or empty. On a GPU, calls and launches of graphs from now on steer by the new list, and those
/// before by the old one; beside a capture this becomes no part of the graph.
sae_status sae_set_edits(sae_session *session,
                         int32_t slot,
                         const sae_edit *edits,
                         size_t n_edits,
                         sae_error **error);

/// Changes activations by the edits of their slots: `out = y + scale · Σ δ_i · W_dec[i]`, with δ_i the change of latent i's
/// activation and `scale` what the model's normalization divided the token by. The part of y that the model does not
/// reconstruct is thereby kept. Tokens left alone keep their bits, as do tokens that are not finite. With TopK, whether a
/// latent is active depends on all others: edits other than ADD on every token cost an encode, unless `known` is given.
sae_status sae_steer(sae_session *session,
                     const sae_run *run,
                     const sae_tensor *x,
                     const sae_tensor *addend,
                     const sae_steering *steering,
                     sae_error **error);

#define SAE_STEERING_INIT SAE_SIZED_INIT(sae_steering)

// ---- The doctor: whether a model and activations fit -----------------------------------------------------------------

/// Nothing speaks against it.
#define SAE_VERDICT_FITS 1
/// Something is off; features may still mean what they should.
#define SAE_VERDICT_DOUBTFUL 2
/// The features mean nothing.
#define SAE_VERDICT_MISFIT 3
/// The sample is too small, or says nothing.
#define SAE_VERDICT_CANNOT_TELL 4

/// Worth knowing.
#define SAE_SEVERITY_NOTE 1
/// Numbers are off.
#define SAE_SEVERITY_WARNING 2
/// Numbers are wrong.
#define SAE_SEVERITY_ERROR 3

/// Too few usable rows, or rows that do not vary.
#define SAE_FINDING_TOO_FEW_ROWS 1
/// Rows that are not finite.
#define SAE_FINDING_NOT_FINITE 2
/// Activations are too small or too large by a factor.
#define SAE_FINDING_WRONG_SCALE 3
/// The model wants each row normalised, or not normalised, against what its files say.
#define SAE_FINDING_WRONG_NORMALIZATION 4
/// Rows are normalised already, but the model wants them as the language model has them.
#define SAE_FINDING_ALREADY_NORMALIZED 5
/// b_dec was subtracted before the activations were handed in.
#define SAE_FINDING_B_DEC_SUBTRACTED 6
/// The model subtracts b_dec and should not, or the other way round.
#define SAE_FINDING_B_DEC_FLAG 7
/// The model was trained on rows without their mean.
#define SAE_FINDING_NOT_CENTERED 8
/// Rows lack their mean, but the model was trained with it.
#define SAE_FINDING_CENTERED 9
/// Another layer or site, another language model, or activations that the model does not know at all.
#define SAE_FINDING_WRONG_PLACE 10
/// A neighbouring layer or site.
#define SAE_FINDING_NEAR_PLACE 11
/// Much is right, and all a little off: quantisation, other text, another version of the language model.
#define SAE_FINDING_DRIFT 12
/// Values were rounded to few levels.
#define SAE_FINDING_ROUNDED 13
/// Contexts do not begin with the BOS token.
#define SAE_FINDING_BOS_MISSING 14
/// Contexts begin with one and the same token, but did not in training.
#define SAE_FINDING_BOS_ADDED 15
/// Whether contexts begin with BOS cannot be seen.
#define SAE_FINDING_BOS_UNKNOWN 16
/// Attention sinks are among the rows, which the model was not trained on.
#define SAE_FINDING_SINKS_INCLUDED 17
/// Many latents never fire.
#define SAE_FINDING_DEAD 18
/// More or fewer latents are active than should be.
#define SAE_FINDING_L0_OFF 19
/// There is nothing to compare with: only gross faults show.
#define SAE_FINDING_NO_REFERENCE 20

/// What the doctor says of a model and a sample of activations. Free it.
typedef struct sae_report sae_report;

/// How to examine. NULL or all zero: the defaults.
typedef struct sae_doctor_options {
  /// `sizeof(sae_doctor_options)`; `SAE_DOCTOR_OPTIONS_INIT` sets it.
  size_t struct_size;
  /// `[T, d_out]`: what the output is compared with. Transcoders need it; NULL: x itself.
  const sae_tensor *target;
  /// `[T]` i32: each row's position in its context, -1 if unknown; NULL: none is known, and BOS can hardly be checked.
  const sae_tensor *positions;
  /// A report of activations known to be good, to compare with; NULL: the reference in the model's convention, if any.
  const sae_report *baseline;
  /// Who computes; NULL: the calling thread alone.
  const sae_pool *pool;
  /// The most rows that are measured, spread over the sample; 0: 16,384.
  int64_t max_rows;
  /// 0.
  uint64_t flags;
} sae_doctor_options;

/// The numbers of a report.
typedef struct sae_report_info {
  /// `sizeof(sae_report_info)`; `SAE_REPORT_INFO_INIT` sets it.
  size_t struct_size;
  /// `SAE_VERDICT_…`.
  int32_t verdict;
  /// How many findings there are.
  int32_t n_findings;
  /// Rows of the sample.
  int64_t rows_given;
  /// Those that were measured.
  int64_t rows_measured;
  /// Left aside: not finite.
  int64_t rows_not_finite;
  /// Left aside: at positions that the model's convention leaves out.
  int64_t rows_excluded;
  /// Left aside: of 8 times the median norm or more.
  int64_t rows_large;
  /// Latents that were active on no row.
  int64_t dead;
  /// Fraction of variance unexplained.
  double fvu;
  /// Active latents per row.
  double l0;
  /// The share of the error that is the same in every row.
  double bias;
  /// Median norm of the rows.
  double norm;
  /// The distance of the norms' quartiles, relative to the median.
  double norm_spread;
  /// FVU that was expected; 0: unknown.
  double reference_fvu;
} sae_report_info;

/// A finding: what, how bad, how it shows, and what to do. Texts are valid until the report is freed.
typedef struct sae_finding {
  /// `sizeof(sae_finding)`; `SAE_FINDING_INIT` sets it.
  size_t struct_size;
  /// `SAE_FINDING_…`.
  int32_t code;
  /// `SAE_SEVERITY_…`.
  int32_t severity;
  /// By what activations are to be multiplied, where that is the remedy; else 0.
  double factor;
  /// FVU once it is mended, where that was tried; else 0.
  double fvu_mended;
  /// The code in words.
  const char *title;
  /// What was measured.
  const char *evidence;
  /// What to do.
  const char *advice;
} sae_finding;

/// Examines whether activations `x` `[T, d_in]` are what a model expects, and names the likely fault if not. Some thousand rows, of
/// many contexts, are a good sample. That they do not fit is no failure of the call: the report says so.
sae_status sae_doctor(const sae_model *model,
                      const sae_tensor *x,
                      const sae_doctor_options *options,
                      sae_report **out,
                      sae_error **error);

/// The numbers of a report.
sae_status sae_report_get(const sae_report *report, sae_report_info *out, sae_error **error);

/// Finding `i` of a report, from 0: the worst first, of equals the likeliest cause first.
sae_status sae_report_finding(const sae_report *report,
                              int64_t i,
                              sae_finding *out,
                              sae_error **error);

/// The whole report as text for people, valid until it is freed; "" for NULL.
const char *sae_report_text(const sae_report *report);

/// The whole report as JSON, valid until it is freed; "" for NULL.
const char *sae_report_json(const sae_report *report);

/// Frees a report; NULL is nothing.
void sae_report_free(sae_report *report);

#define SAE_DOCTOR_OPTIONS_INIT SAE_SIZED_INIT(sae_doctor_options)
#define SAE_REPORT_INFO_INIT SAE_SIZED_INIT(sae_report_info)
#define SAE_FINDING_INIT SAE_SIZED_INIT(sae_finding)

// ---- Communicators: training by more than one process ----------------------------------------------------------------

/// Ranks that hold the same latents and see different tokens.
#define SAE_AXIS_DATA 0
/// Ranks that see the same tokens and hold different latents.
#define SAE_AXIS_LATENTS 1

/// The most bytes that a rank gives in one call of a communicator.
#define SAE_COLLECTIVE_MAX_BYTES 67108864

/// Brings together what all ranks of an axis have: `bytes` of each, into `all`, in their order.
typedef int32_t (*sae_all_gather)(void *context, int32_t axis, const void *mine, size_t bytes, void *all);

/// Replaces the numbers by their sums over an axis.
typedef int32_t (*sae_all_reduce_sum)(void *context, int32_t axis, float *values, size_t count);

/// Sums over an axis, of which each rank gets its part of `count` numbers into `mine`; `values` has as many for each rank.
typedef int32_t (*sae_reduce_scatter_sum)(void *context,
                                          int32_t axis,
                                          const float *values,
                                          float *mine,
                                          size_t count);

/// Replaces the numbers by the least of each over an axis.
typedef int32_t (*sae_all_reduce_min)(void *context, int32_t axis, int64_t *values, size_t count);

/// Replaces the bytes by those of the rank in place `root` of an axis.
typedef int32_t (*sae_broadcast)(void *context, int32_t axis, int32_t root, void *bytes, size_t count);

/// How the processes of one run reach each other: the host fills in its communicator's functions. Processes stand in a grid of
/// `data_ranks` rows of `latent_ranks` each, numbered row after row. Those of a row (`SAE_AXIS_LATENTS`) get the same batches
/// and hold different latents; those of a column (`SAE_AXIS_DATA`) hold the same latents and get different batches.
///
/// A function returns 0 once its result is there, or anything else if it cannot be had: the trainer's call then fails with
/// `SAE_ERROR_COLLECTIVE`, and so does every later one. To give up on a process that does not answer is the host's part. All
/// ranks of an axis make the same calls in the same order, with the same counts, from the thread that calls the trainer,
/// one at a time, and with at most `SAE_COLLECTIVE_MAX_BYTES` of each rank's. Only `all_gather` must be there; the others
/// spare traffic, and must give all ranks the same bits, and the same numbers the same bits every time.
typedef struct sae_collective {
  /// `sizeof(sae_collective)`; `SAE_COLLECTIVE_INIT` sets it.
  size_t struct_size;
  /// This process's number, from 0.
  int64_t rank;
  /// Rows of the grid: over how many ranks tokens are split; 0: 1.
  int64_t data_ranks;
  /// Ranks of a row: over how many latents are split; 0: 1.
  int64_t latent_ranks;
  /// Handed back to the functions. It and they must stay valid while a trainer made with them lives.
  void *context;
  /// Must be there.
  sae_all_gather all_gather;
  /// NULL: numbers are gathered, and summed in the order of ranks.
  sae_all_reduce_sum all_reduce_sum;
  /// Asked for where `all_reduce_sum` is NULL; NULL: as there.
  sae_reduce_scatter_sum reduce_scatter_sum;
  /// NULL: numbers are gathered.
  sae_all_reduce_min all_reduce_min;
  /// NULL: all ranks' bytes are gathered.
  sae_broadcast broadcast;
} sae_collective;

#define SAE_COLLECTIVE_INIT SAE_SIZED_INIT(sae_collective)

// ---- Trainers: a TopK SAE from activations as they flow by -----------------------------------------------------------

/// No auxiliary loss on dead latents.
#define SAE_TRAIN_NO_AUX 1
/// No moving average of the weights, which saves its memory.
#define SAE_TRAIN_NO_EMA 2
/// Train a transcoder: batches have targets, which is what is reconstructed, and b_dec is not subtracted from the inputs.
#define SAE_TRAIN_TRANSCODER 4
/// Give a transcoder a skip path: `W_skip x` is added to what it reconstructs.
#define SAE_TRAIN_SKIP 8

/// The k largest of each token (Gao et al. 2024).
#define SAE_RECIPE_TOP_K 0
/// TopK by the losses of k and 4 k together, for an SAE that serves any k between and beyond (Gao et al. 2024).
#define SAE_RECIPE_MULTI_TOP_K 1
/// The k largest of each token of a batch on average; exported with a threshold (Bussmann et al. 2024).
#define SAE_RECIPE_BATCH_TOP_K 2
/// BatchTopK of which every prefix is an SAE too (Bussmann et al. 2025).
#define SAE_RECIPE_MATRYOSHKA 3
/// The k largest in magnitude of each token, with their signs (Zhu et al. 2025).
#define SAE_RECIPE_ABS_TOP_K 4
/// All positive pre-activations, with an L1 penalty (Bricken et al. 2023, Conerly et al. 2024).
#define SAE_RECIPE_RELU 5
/// Those beyond trained thresholds, with a penalty on their number (Rajamanoharan et al. 2024).
#define SAE_RECIPE_JUMP_RELU 6
/// Those whose gates are open, with an L1 penalty on the gates (Rajamanoharan et al. 2024).
#define SAE_RECIPE_GATED 7

/// L0: the number of active latents.
#define SAE_PENALTY_STEP 0
/// The sum of tanh(4 z), nearly their number.
#define SAE_PENALTY_TANH 1
/// The square of how far their number is from `target_l0`, times 2 / `target_l0`.
#define SAE_PENALTY_QUADRATIC 2

/// `SAE_SCALING_ROOT_WIDTH` for recipes with a penalty, unless each token is normalised, and for crosscoders; else
/// `SAE_SCALING_NONE`.
#define SAE_SCALING_RECIPE 0
/// Activations are trained on as they are.
#define SAE_SCALING_NONE 1
/// They are multiplied so that their mean norm is sqrt(d), in each layer of a crosscoder.
#define SAE_SCALING_ROOT_WIDTH 2
/// They are multiplied so that the mean square of their norm is 1.
#define SAE_SCALING_UNIT_SQUARE 3

/// W_enc is not trained.
#define SAE_FREEZE_W_ENC 1
/// b_enc is not trained.
#define SAE_FREEZE_B_ENC 2
/// W_dec is not trained.
#define SAE_FREEZE_W_DEC 4
/// b_dec is not trained.
#define SAE_FREEZE_B_DEC 8
/// JumpReLU's thresholds are not trained.
#define SAE_FREEZE_THRESHOLD 16
/// The gates' biases are not trained.
#define SAE_FREEZE_B_GATE 32
/// The logarithms of the magnitudes' factors are not trained.
#define SAE_FREEZE_R_MAG 64
/// The skip path is not trained.
#define SAE_FREEZE_W_SKIP 128

/// Keep the gradients and make no step; the next call without it makes one with the mean over all tokens since. The auxiliary
/// loss is a ratio of each call's own tokens, weighted by their number, and a latent may die or fire between calls: with it,
/// accumulated calls are close to one large batch, not equal to it. `SAE_RECIPE_BATCH_TOP_K` and `SAE_RECIPE_MATRYOSHKA` let
/// tokens compete within one call alone, and resampling sees the last call's tokens alone.
#define SAE_BATCH_ACCUMULATE 1

/// The weights of the last step.
#define SAE_EXPORT_WEIGHTS 0
/// Their moving average over the steps, which often reconstructs better.
#define SAE_EXPORT_EMA 1

/// One training run: its weights, the optimizer's state and counters. For one thread at a time; a call that
/// comes while another runs is refused with `SAE_ERROR_BAD_STATE`.
typedef struct sae_trainer sae_trainer;

/// How a run is made. `d`, `n_latents` and, for recipes that keep a number of latents, `k` must be set; zero is a good default
/// of all others. What a recipe has no use for must be zero.
typedef struct sae_train_options {
  /// `sizeof(sae_train_options)`; `SAE_TRAIN_OPTIONS_INIT` sets it.
  size_t struct_size;
  /// Width of the activations; of a crosscoder's, that of each layer.
  int64_t d;
  /// Number of latents.
  int64_t n_latents;
  /// Latents kept per token, on average where a batch's tokens compete; 0 for recipes with a penalty.
  int64_t k;
  /// Dead latents that the auxiliary loss uses per token; 0: d / 2.
  int64_t k_aux;
  /// The most tokens of a batch; 0: 8192.
  int64_t max_batch_tokens;
  /// Tokens without firing after which a latent is dead; 0: 10,000,000, or 5 % of `total_tokens` if that is less.
  uint64_t dead_after_tokens;
  /// Optimizer steps over which the learning rate rises from 0; 0: none.
  uint64_t warmup_steps;
  /// Planned length of the run in tokens; 0: not known. It may end sooner or later.
  uint64_t total_tokens;
  /// Seed of the initial weights and of what resampling draws, the only random numbers of a run.
  uint64_t seed;
  /// Who computes; NULL: the calling thread alone. The numbers do not depend on it.
  const sae_pool *pool;
  /// What the inputs look like, to be kept with what is exported; NULL: not known.
  const sae_convention *convention;
  /// Adam's learning rate; 0: 2e-4 / sqrt(n_latents / 16384).
  float learning_rate;
  /// The last part of `total_tokens`, 0 to 1, over which the learning rate falls to 0.
  float decay_fraction;
  /// The auxiliary loss's coefficient; 0: 1/32.
  float aux_coefficient;
  /// Adam's beta 1; 0: 0.9, but 0 for JumpReLU and Gated.
  float adam_beta1;
  /// Adam's beta 2; 0: 0.999.
  float adam_beta2;
  /// Adam's epsilon; 0: 6.25e-10.
  float adam_epsilon;
  /// Global norm that gradients are clipped to; 0: no clipping.
  float clip_norm;
  /// Decay of the weights' moving average; 0: 0.999.
  float ema_decay;
  /// What is done to activations first: `SAE_NORMALIZATION_NONE` or `SAE_NORMALIZATION_LAYER_NORM`.
  int32_t normalization;
  /// `SAE_TRAIN_NO_AUX`, `SAE_TRAIN_NO_EMA`, `SAE_TRAIN_TRANSCODER`, `SAE_TRAIN_SKIP`.
  uint32_t flags;
  /// Width of a transcoder's targets; 0: `d`.
  int64_t d_out;
  /// Latents kept at the start of the run; 0: `k`.
  int64_t k_start;
  /// Optimizer steps over which `k_start` becomes `k`, linearly.
  uint64_t k_anneal_steps;
  /// For Matryoshka, `[n_prefixes]`: the sizes of the nested SAEs, ascending up to `n_latents`; NULL: a sixteenth of the latents,
  /// an eighth, a quarter, a half, and all.
  const int64_t *prefixes;
  /// `[n_prefixes]`: by what the squared error of each is multiplied in the loss; NULL: 1.
  const float *prefix_weights;
  /// How many there are.
  int64_t n_prefixes;
  /// Optimizer steps over which the penalty's coefficient rises from 0; 0: none.
  uint64_t sparsity_warmup_steps;
  /// Optimizer steps after each of which dead latents start anew from badly explained tokens (Bricken et al. 2023); 0: never.
  /// Instead of the auxiliary loss: recipes that have it need `SAE_TRAIN_NO_AUX`.
  uint64_t resample_every;
  /// The penalty's coefficient, against squared errors summed over the width, as in the papers; 0: 1 for JumpReLU, and for ReLU
  /// and Gated 0.03 sqrt(`d`), or 0.03 by `SAE_SCALING_UNIT_SQUARE`.
  float sparsity_coefficient;
  /// For `SAE_PENALTY_QUADRATIC`: the number of active latents that it pulls to.
  float target_l0;
  /// For JumpReLU: how far around a threshold its gradient is estimated; 0: 0.05.
  float bandwidth;
  /// For JumpReLU: the thresholds at the start; 0: 0.01.
  float initial_threshold;
  /// What is trained, and by which loss: `SAE_RECIPE_…`.
  int32_t recipe;
  /// For JumpReLU: `SAE_PENALTY_…`.
  int32_t penalty;
  /// What activations are multiplied by before anything else, which is folded into exports: `SAE_SCALING_…`.
  int32_t scaling;
  /// What stays as the run's start has it: `SAE_FREEZE_…`.
  uint32_t frozen;
  /// Layers of the model that are read and written at once, by a crosscoder; 0: 1. With more, what is said to be `[T, d]` is
  /// `[T, layers, d]`.
  int64_t layers;
  /// The other processes of the run, which all need the same options and make the same calls, but for batches; NULL: there
  /// are none. What is refused to one of them is refused to all.
  const sae_collective *collective;
} sae_train_options;

/// What one call trains on.
typedef struct sae_train_batch {
  /// `sizeof(sae_train_batch)`; `SAE_TRAIN_BATCH_INIT` sets it.
  size_t struct_size;
  /// `[T, d]` (of a crosscoder `[T, layers, d]`), f32, f16 or bf16; T from 0 to `max_batch_tokens`.
  const sae_tensor *x;
  /// As x: x + addend is trained on, formed in f32; NULL: x.
  const sae_tensor *addend;
  /// `[T, d_out]`, f32, f16 or bf16: what a transcoder reconstructs; NULL for an autoencoder.
  const sae_tensor *target;
  /// `[T]`, i32: tokens with 0 are left out, such as the attention sink; NULL: all count.
  const sae_tensor *row_mask;
  /// `SAE_BATCH_ACCUMULATE`.
  uint32_t flags;
  /// 0.
  uint32_t reserved;
} sae_train_batch;

/// What a call tells about itself. Losses, FVU and L0 are of its own tokens, under the weights they were computed with.
typedef struct sae_train_stats {
  /// `sizeof(sae_train_stats)`; `SAE_TRAIN_STATS_INIT` sets it.
  size_t struct_size;
  /// Optimizer steps made so far.
  uint64_t step;
  /// Tokens trained on since the run began.
  uint64_t tokens_seen;
  /// Tokens of this call that were trained on.
  uint64_t tokens;
  /// Tokens left out by the row mask.
  uint64_t tokens_masked;
  /// Tokens left out because they were not finite, or too large for their square to be.
  uint64_t tokens_not_finite;
  /// Latents that are dead after this call.
  uint64_t dead;
  /// What is minimised: `mse + aux + sparsity`.
  double loss;
  /// The reconstruction's part, divided by the first sample's variance.
  double mse;
  /// The auxiliary loss's part, its coefficient included; for Gated, what the gates alone reconstruct.
  double aux;
  /// Fraction of variance unexplained, 0 to 1 and beyond.
  double fvu;
  /// Mean count of active latents per token.
  double l0;
  /// Dead latents as a share of all.
  double dead_fraction;
  /// Global norm of the gradient before clipping; 0 if no step was made.
  double grad_norm;
  /// Learning rate of the step; 0 if no step was made.
  double learning_rate;
  /// 1 if this call made an optimizer step, 0 if its gradients wait.
  int32_t applied;
  /// 0.
  uint32_t reserved;
  /// The penalty's part, its coefficient included; 0 for recipes without one.
  double sparsity;
  /// Latents that started anew after the step.
  uint64_t resampled;
} sae_train_stats;

/// What a run is, and how far it has come: after `sae_trainer_resume`, the host's data continues at `rows_given`.
typedef struct sae_train_progress {
  /// `sizeof(sae_train_progress)`; `SAE_TRAIN_PROGRESS_INIT` sets it.
  size_t struct_size;
  /// Width of the activations.
  int64_t d;
  /// Number of latents.
  int64_t n_latents;
  /// Latents kept per token.
  int64_t k;
  /// The most tokens of a batch.
  int64_t max_batch_tokens;
  /// Planned length of the run in tokens; 0: not known.
  uint64_t total_tokens;
  /// Optimizer steps made so far.
  uint64_t step;
  /// Tokens trained on so far.
  uint64_t tokens_seen;
  /// Rows of all batches so far, those left out included.
  uint64_t rows_given;
  /// 1 if the run was started, 0 if not.
  int32_t started;
  /// 0.
  uint32_t reserved;
} sae_train_progress;

/// Makes a run. It is started by `sae_trainer_init_from` or `sae_trainer_warm_start`. It takes about 41 bytes for each of
/// `n_latents` · `d` (33 without the moving average, 1 less where no 8-bit copy of the encoder speeds it up), and for each
/// token of the largest batch 8 `d` + 24 `k` by TopK, 16 `d` + 112 `k` by Multi-TopK, 8 `d` + 56 `k` by BatchTopK, with 4 `d` more
/// for each prefix of Matryoshka; recipes with a penalty take 8 `d`, and 48 to 96 MB for all tokens together.
sae_status sae_trainer_create(const sae_train_options *options,
                              sae_trainer **out,
                              sae_error **error);

/// Starts a run from a first sample `[S, d]`, some thousand tokens that look like the rest: b_dec becomes its geometric median,
/// the loss is divided by its variance, and random weights are scaled to it. Tokens that are not finite are left out.
sae_status sae_trainer_init_from(sae_trainer *trainer,
                                 const sae_tensor *sample,
                                 sae_error **error);

/// `sae_trainer_init_from` for a transcoder: a first sample of inputs `[S, d]` and one of their targets `[S, d_out]`. b_dec
/// becomes the targets' geometric median, and the loss is divided by their variance.
sae_status sae_trainer_init_transcoder(sae_trainer *trainer,
                                       const sae_tensor *sample,
                                       const sae_tensor *target,
                                       sae_error **error);

/// `sae_trainer_warm_start` for a transcoder: with samples of inputs `[S, d]` and of their targets `[S, d_out]`.
sae_status sae_trainer_warm_start_transcoder(sae_trainer *trainer,
                                             const sae_model *model,
                                             const sae_tensor *sample,
                                             const sae_tensor *target,
                                             sae_error **error);

/// Starts a run from the weights of a model of the same sizes, of an architecture that the recipe trains or can start from; the
/// loss is divided by the variance of the sample `[S, d]`.
sae_status sae_trainer_warm_start(sae_trainer *trainer,
                                  const sae_model *model,
                                  const sae_tensor *sample,
                                  sae_error **error);

/// Trains on a batch: one optimizer step, unless it accumulates. `stats` may be NULL; of `run`, `SAE_RUN_FAST` and
/// `SAE_RUN_ROUND_SUM` are known. A call that is refused changes nothing. If the gradient is not finite
/// (`SAE_ERROR_NOT_FINITE`), it is dropped, with all that was accumulated, and the weights stay as they are; the batch still
/// counts in `rows_given` and `tokens_seen`, and for latents that did not fire.
sae_status sae_train_step(sae_trainer *trainer,
                          const sae_run *run,
                          const sae_train_batch *batch,
                          sae_train_stats *stats,
                          sae_error **error);

/// From the next step on, learning rates are the schedule's times `rate`, until it is set again; checkpoints keep it. A run that
/// diverged (`SAE_ERROR_NOT_FINITE`, or a loss that rises) may be resumed from its last checkpoint and go on with less.
sae_status sae_trainer_set_rate(sae_trainer *trainer,
                                double rate,
                                sae_error **error);

/// Tells what a run is, and how far it has come.
sae_status sae_trainer_progress(sae_trainer *trainer,
                                sae_train_progress *out,
                                sae_error **error);

/// Saves all that is needed to continue to the same bits into a directory, which is made if it is not there. Whatever
/// happens, the directory holds the last complete checkpoint. Of several processes each writes its part, into one directory
/// that is the same for all.
sae_status sae_trainer_save(sae_trainer *trainer,
                            const char *dir,
                            sae_error **error);

/// Continues a run from its last checkpoint. `options` may be NULL; what is set in them must agree with the checkpoint, except
/// for `pool`, `max_batch_tokens` and `collective`: as many processes go on as there are now.
sae_status sae_trainer_resume(const char *dir,
                              const sae_train_options *options,
                              sae_trainer **out,
                              sae_error **error);

/// Makes a model of what was trained so far: `SAE_EXPORT_WEIGHTS` or `SAE_EXPORT_EMA`. Decoder rows have norm 1; of a crosscoder,
/// the norms of their layers add up to 1 on the scale of training. Of several processes, all must call, and each gets the whole.
sae_status sae_trainer_export(sae_trainer *trainer,
                              int32_t what,
                              sae_model **out,
                              sae_error **error);

/// Frees a trainer; NULL is nothing.
void sae_trainer_free(sae_trainer *trainer);

#define SAE_TRAIN_OPTIONS_INIT SAE_SIZED_INIT(sae_train_options)
#define SAE_TRAIN_BATCH_INIT SAE_SIZED_INIT(sae_train_batch)
#define SAE_TRAIN_STATS_INIT SAE_SIZED_INIT(sae_train_stats)
#define SAE_TRAIN_PROGRESS_INIT SAE_SIZED_INIT(sae_train_progress)

// ---- Shuffle buffers: what an engine computes, mixed into batches ----------------------------------------------------

/// Rows come with their document's number, and are given with it.
#define SAE_BUFFER_DOCUMENTS 1
/// Rows that are not finite are held like others, instead of left out and counted.
#define SAE_BUFFER_KEEP_NOT_FINITE 2

/// Wait as long as it takes.
#define SAE_WAIT_FOREVER -1

/// Everything has been given.
#define SAE_BUFFER_END -1

/// A shuffle buffer: takes activations in any order and number, as an engine computes them, and gives batches drawn uniformly
/// at random, without replacement, from all rows that it holds at that moment: at least half of what it can hold, until it is
/// closed. Rows are refused, never dropped: those that are left out for a reason are counted. For any number of threads at
/// once. What is given depends on the seed and the sequence of pushes and takes alone.
typedef struct sae_buffer sae_buffer;

/// How a buffer is made. `d` must be set; zero is a good default of all others.
typedef struct sae_buffer_options {
  /// `sizeof(sae_buffer_options)`; `SAE_BUFFER_OPTIONS_INIT` sets it.
  size_t struct_size;
  /// Width of a vector of activations.
  int64_t d;
  /// Layers of a row; 0: rows are vectors, and batches `[T, d]`, not `[T, layers, d]`.
  int64_t layers;
  /// The most bytes of memory that the buffer takes, all that it needs counted; 0: 1 GiB.
  uint64_t memory_bytes;
  /// Size of the file that holds what does not fit into memory; 0: none.
  uint64_t spill_bytes;
  /// The folder of that file, which has no name and is gone when the buffer is, or the process; NULL: none.
  const char *spill_folder;
  /// Of the order in which rows are given.
  uint64_t seed;
  /// With `SAE_BUFFER_DOCUMENTS`: documents of which rows must be held before any are given, unless the buffer is full;
  /// 0: 1.
  uint64_t min_documents;
  /// Rows whose norm exceeds this many times the running median of norms are left out: attention sinks, whose norms are 40
  /// to 150 times those of others. 0: none are.
  float sink_multiple;
  /// Rows whose norm exceeds this are left out; 0: none are.
  float max_norm;
  /// The type in which rows are held, f32, f16 or bf16; all zero: f32.
  sae_dtype dtype;
  /// `SAE_BUFFER_…`.
  uint32_t flags;
} sae_buffer_options;

/// What a buffer takes.
typedef struct sae_buffer_size {
  /// `sizeof(sae_buffer_size)`; `SAE_BUFFER_SIZE_INIT` sets it.
  size_t struct_size;
  /// Rows that can be held. A batch has at most half as many.
  uint64_t capacity;
  /// Bytes of memory.
  uint64_t memory_bytes;
  /// Bytes of the file.
  uint64_t spill_bytes;
} sae_buffer_size;

/// Rows to be mixed.
typedef struct sae_buffer_rows {
  /// `sizeof(sae_buffer_rows)`; `SAE_BUFFER_ROWS_INIT` sets it.
  size_t struct_size;
  /// `[T, d]`, or `[T, layers, d]`; f32, f16 or bf16, rounded to the buffer's type if that is another.
  const sae_tensor *x;
  /// Like `x`: x + addend is held, formed in f32; NULL: x.
  const sae_tensor *addend;
  /// `[T]`, i32: rows with 0 are left out; NULL: all count.
  const sae_tensor *row_mask;
  /// The document of each of the T rows, if the buffer keeps documents.
  const int64_t *documents;
  /// Rows at the front that are passed over: those that an earlier call has taken.
  int64_t first;
  /// `SAE_RUN_ROUND_SUM`: x + addend is rounded to x's type before it is held, as `sae_train_step` does it.
  uint32_t flags;
  /// 0.
  uint32_t reserved;
} sae_buffer_rows;

/// How a buffer fares. At every moment `pushed` = `masked` + `not_finite` + `sinks` + `taken` + `held`.
typedef struct sae_buffer_state {
  /// `sizeof(sae_buffer_state)`; `SAE_BUFFER_STATE_INIT` sets it.
  size_t struct_size;
  /// Rows taken from those who push, whatever became of them.
  uint64_t pushed;
  /// Rows left out by masks.
  uint64_t masked;
  /// Rows left out because they were not finite.
  uint64_t not_finite;
  /// Rows left out because of their norm.
  uint64_t sinks;
  /// Rows given.
  uint64_t taken;
  /// Rows held.
  uint64_t held;
  /// Rows that can be held.
  uint64_t capacity;
  /// Batches given because the buffer was full, from fewer documents than were asked for.
  uint64_t unmixed;
  /// The running median of norms; 0 where sinks are not judged by it, or none is known.
  float median_norm;
  /// 1 if the buffer was closed, 0 if not.
  int32_t closed;
} sae_buffer_state;

/// Tells what a buffer of these options will take; nothing is allocated to find out.
sae_status sae_buffer_memory(const sae_buffer_options *options,
                             sae_buffer_size *out,
                             sae_error **error);

/// Makes an empty buffer, which takes all its memory now.
sae_status sae_buffer_create(const sae_buffer_options *options,
                             sae_buffer **out,
                             sae_error **error);

/// Takes in rows, and tells how many in `taken`: all from `first` on, unless there is no room for them. Then it waits until there
/// is, for `wait_ms` milliseconds, 0: not at all, `SAE_WAIT_FOREVER`; call again with `first` raised by what was taken. Rows
/// that are left out count as taken: those of the mask, those that are not finite in the buffer's type, attention sinks.
/// `SAE_ERROR_BAD_STATE` if the buffer is closed before any row is taken.
sae_status sae_buffer_push(const sae_buffer *buffer,
                           const sae_buffer_rows *rows,
                           int64_t wait_ms,
                           int64_t *taken,
                           sae_error **error);

/// Gives T rows into `out`, `[T, d]` or `[T, layers, d]`, of the buffer's type or f32, and their documents into `documents`, T
/// numbers, unless it is NULL. `taken` becomes the number of rows: fewer than T only where a closed buffer is left with fewer;
/// 0 if too few are held yet, even after `wait_ms` milliseconds (0: not waited for, or `SAE_WAIT_FOREVER`); `SAE_BUFFER_END`
/// once the buffer is closed and empty. If the spill file cannot be read (`SAE_ERROR_IO`), all rows stay in the buffer, but what
/// is in `out` and `documents` is not defined.
sae_status sae_buffer_take(const sae_buffer *buffer,
                           const sae_tensor *out,
                           int64_t *documents,
                           int64_t wait_ms,
                           int64_t *taken,
                           sae_error **error);

/// Takes in no more rows, and ends all waiting: those who push are told how many rows were taken, those who take get what is
/// left, to the last row. Either side may call it: when the stream ends, or when no more is wanted.
sae_status sae_buffer_close(const sae_buffer *buffer,
                            sae_error **error);

/// Tells how a buffer fares.
sae_status sae_buffer_stats(const sae_buffer *buffer, sae_buffer_state *out, sae_error **error);

/// Saves all that decides what comes next, the rows themselves included, into a file that appears whole or not at all. Other calls
/// wait while it is written, but not until it is on the disk.
sae_status sae_buffer_save(const sae_buffer *buffer,
                           const char *path,
                           sae_error **error);

/// Makes a buffer that goes on where one was saved: the same pushes and takes give the same bits. `options` may be NULL; what is
/// set in them must agree with what was saved, except for `memory_bytes`, `spill_bytes` and `spill_folder`, which say anew where
/// rows are held, if any of them is set. If none is, they are held in memory, in at most 1 GiB: a buffer that took more, or had a
/// spill file, is refused until that is said.
sae_status sae_buffer_restore(const char *path,
                              const sae_buffer_options *options,
                              sae_buffer **out,
                              sae_error **error);

/// Frees a buffer, which no thread may still be waiting for; NULL is nothing.
void sae_buffer_free(sae_buffer *buffer);

#define SAE_BUFFER_OPTIONS_INIT SAE_SIZED_INIT(sae_buffer_options)
#define SAE_BUFFER_SIZE_INIT SAE_SIZED_INIT(sae_buffer_size)
#define SAE_BUFFER_ROWS_INIT SAE_SIZED_INIT(sae_buffer_rows)
#define SAE_BUFFER_STATE_INIT SAE_SIZED_INIT(sae_buffer_state)

// ---- Atlases: what was seen of each feature --------------------------------------------------------------------------

/// Bins of a histogram.
#define SAE_ATLAS_BINS 64

/// Windows around the highest peaks, the highest first.
#define SAE_WINDOWS_TOP 0
/// Windows drawn from intervals, the highest interval first.
#define SAE_WINDOWS_INTERVALS 1
/// Windows drawn from all activations.
#define SAE_WINDOWS_RANDOM 2

/// An atlas watches features flow by and keeps of each latent how often and how strongly it was active, and the texts in which it
/// was: the windows of tokens around its highest peaks, and around activations drawn at random. In one pass, and in memory that is
/// known before. It serves one thread at a time; threads that have an atlas each merge them at the end.
typedef struct sae_atlas sae_atlas;

/// What an atlas keeps. `n_latents` must be set; zero is a good default of all others, and where 0 would mean something else, -1 is
/// none. Atlases of the same options merge; `max_width` and `max_documents` may differ.
typedef struct sae_atlas_options {
  /// `sizeof(sae_atlas_options)`; `SAE_ATLAS_OPTIONS_INIT` sets it.
  size_t struct_size;
  /// Latents.
  int64_t n_latents;
  /// The index of the first of them, where features come from a shard of latents.
  int64_t first_latent;
  /// Of what is drawn.
  uint64_t seed;
  /// Windows kept of each latent around its highest peaks: 20 (-1: none).
  int32_t top;
  /// Windows drawn from each of 10 equal intervals of the latent's activations: 5 (-1: none).
  int32_t per_interval;
  /// Windows drawn from all tokens on which the latent is active: 10 (-1: none).
  int32_t random;
  /// Tokens before the peak in top windows: 47 (-1: none).
  int32_t top_before;
  /// Tokens after it: 16 (-1: none).
  int32_t top_after;
  /// Tokens before the activation in drawn windows: 23 (-1: none).
  int32_t drawn_before;
  /// Tokens after it: 8 (-1: none).
  int32_t drawn_after;
  /// The most slots per token that features come with: 512.
  int32_t max_width;
  /// Documents whose tokens may come by turns: 64. One more, and that which has waited longest is ended.
  int32_t max_documents;
  /// 0.
  int32_t reserved;
} sae_atlas_options;

/// What an atlas is, and has seen.
typedef struct sae_atlas_info {
  /// `sizeof(sae_atlas_info)`; `SAE_ATLAS_INFO_INIT` sets it.
  size_t struct_size;
  /// Latents.
  int64_t n_latents;
  /// The index of the first of them.
  int64_t first_latent;
  /// Tokens seen.
  uint64_t tokens;
  /// Tokens of them whose features were not counted, because they were not finite.
  uint64_t not_finite;
  /// Tokens on which more latents were active than were listed; only those were counted.
  uint64_t cut;
  /// Stretches of consecutive tokens; with documents that come whole, documents.
  uint64_t stretches;
  /// The most tokens that a window has.
  int64_t max_window;
} sae_atlas_info;

/// The numbers of a latent, but for the last tokens of open documents. With N tokens seen, `E[aⁿ]` is Σaⁿ / N, the skew
/// `E[a³] / E[a²]^1.5`, and the kurtosis `E[a⁴] / E[a²]²`.
typedef struct sae_atlas_feature {
  /// `sizeof(sae_atlas_feature)`; `SAE_ATLAS_FEATURE_INIT` sets it.
  size_t struct_size;
  /// Tokens on which it is active.
  uint64_t count;
  /// Σa, Σa², Σa³, Σa⁴ over them.
  double sums[4];
  /// Its largest activation; 0 if it is never active.
  float max;
  /// Its smallest.
  float min;
  /// Windows around its highest peaks.
  int32_t n_top;
  /// Windows drawn from intervals.
  int32_t n_intervals;
  /// Windows drawn from all.
  int32_t n_random;
  /// Bins of the histogram in use: those with something in them, from the lowest on.
  int32_t n_bins;
  /// Activations smaller than the lowest bin that could be kept.
  uint64_t below;
  /// Where bins begin, by |a|. Four bins are an octave.
  float bin_from[64];
  /// Where bins end.
  float bin_to[64];
  /// How many |a| lie in each.
  uint64_t bin_count[64];
} sae_atlas_feature;

/// A window: tokens around an activation.
typedef struct sae_atlas_window {
  /// `sizeof(sae_atlas_window)`; `SAE_ATLAS_WINDOW_INIT` sets it.
  size_t struct_size;
  /// The document.
  int64_t document;
  /// The position of the activation in the document.
  int64_t position;
  /// The activation.
  float value;
  /// Which of the window's tokens it is on.
  int32_t at;
  /// Tokens of the window.
  int32_t length;
  /// In which of 10 equal parts of 0 to the power of two above the latent's largest |a| it lies.
  int32_t interval;
} sae_atlas_window;

/// Tells the most bytes of memory that an atlas of these options ever takes; nothing is allocated to find out.
sae_status sae_atlas_memory(const sae_atlas_options *options,
                            uint64_t *bytes,
                            sae_error **error);

/// Makes an atlas that has seen nothing yet. It takes its memory now, but for the tokens of open documents.
sae_status sae_atlas_create(const sae_atlas_options *options,
                            sae_atlas **out,
                            sae_error **error);

/// Has the atlas watch T tokens, whose features are in host memory. `tokens` is `[T]`, i32: whatever numbers the host has for them.
/// `documents` are T numbers, or NULL: all are of document 0. Tokens of a document come in order, those of several documents may
/// come by turns, and a document may span calls. `positions` are the T tokens' positions in their documents, or NULL: each follows
/// the last token of its document; windows do not reach across a gap. Tokens of count -1, or with a feature that is not finite, are
/// counted apart. If the call is refused, none of the tokens was seen.
sae_status sae_atlas_observe(const sae_atlas *atlas,
                             const sae_features *features,
                             const sae_tensor *tokens,
                             const int64_t *documents,
                             const int64_t *positions,
                             sae_error **error);

/// Ends all documents: the last tokens of open ones, which were held back because windows reach beyond them, are counted too.
sae_status sae_atlas_finish(const sae_atlas *atlas,
                            sae_error **error);

/// Adds what `other` has seen, which stays as it is. Documents of both are ended; no document may be in both. The result is that
/// of one atlas that has seen everything, but for the rounding of sums.
sae_status sae_atlas_merge(const sae_atlas *atlas,
                           const sae_atlas *other,
                           sae_error **error);

/// Saves the atlas into a file that appears whole or not at all. All documents are ended before. The same atlas has the same bytes.
sae_status sae_atlas_save(const sae_atlas *atlas,
                          const char *path,
                          sae_error **error);

/// Loads an atlas that was saved; what it sees from then on is added. It is refused if it takes more than `max_bytes` of memory, 0:
/// 8 GiB.
sae_status sae_atlas_load(const char *path,
                          uint64_t max_bytes,
                          sae_atlas **out,
                          sae_error **error);

/// Tells what an atlas is, and has seen.
sae_status sae_atlas_get(const sae_atlas *atlas, sae_atlas_info *out, sae_error **error);

/// Tells the numbers of a latent.
sae_status sae_atlas_read(const sae_atlas *atlas,
                          int64_t latent,
                          sae_atlas_feature *out,
                          sae_error **error);

/// Gives a window of a latent, the `index`th of its kind: what it is, and, each unless NULL, its tokens and the latent's activations
/// on them (as bf16 holds them), into room for `max_window` numbers each, of which `length` are written.
sae_status sae_atlas_read_window(const sae_atlas *atlas,
                                 int64_t latent,
                                 int32_t kind,
                                 int64_t index,
                                 sae_atlas_window *out,
                                 int32_t *tokens,
                                 float *activations,
                                 sae_error **error);

/// Frees an atlas; NULL is nothing.
void sae_atlas_free(sae_atlas *atlas);

#define SAE_ATLAS_OPTIONS_INIT SAE_SIZED_INIT(sae_atlas_options)
#define SAE_ATLAS_INFO_INIT SAE_SIZED_INIT(sae_atlas_info)
#define SAE_ATLAS_FEATURE_INIT SAE_SIZED_INIT(sae_atlas_feature)
#define SAE_ATLAS_WINDOW_INIT SAE_SIZED_INIT(sae_atlas_window)

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // SAE_H
