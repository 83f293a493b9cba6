// What every kernel is given, and the list of kernels. The structures are mirrored in ../params.rs; a test compares the layouts.
// Nothing here was seen on a GPU: kernels are compiled for it, and run on the CPU under the stand-in.
//
// Conventions. A kernel takes one structure by value. Sizes are in elements, strides too. Pointers that a call has no use for
// are null. T tokens ("rows"), n latents, d the length of an input vector. Every scratch array starts at a multiple of 16 bytes. Where a
// grid has T in its second dimension, T is at most 65535.
//   padded   length of a row of x'' in f32: a multiple of 16, zeros from d on.
//   Key      64 bits: |value| above, then (INT32_MAX - index) << 1, then the sign; greater keys come first. 0 is no key.
//
// Encoding by bounds:   prepare, { screen, tighten } for growing ranges of latents, rescore, exact, select
// Encoding fast:        prepare, { fast, tighten } for growing ranges of latents, exact, select
// Encoding without:     prepare, score into scratch, (winnow or group_best,) select; the tokens in as many chunks as scratch asks for
#pragma once

typedef int i32;
typedef unsigned u32;
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef float f32;

enum Type : i32 { F32 = 0, F16 = 1, BF16 = 2 };
enum Selection : i32 { ALL = 0, TOP_K = 1, ABS_TOP_K = 2, GROUP_MAX = 3 };
enum Normalization : i32 { NO_NORM = 0, LAYER_NORM = 1, CONSTANT_NORM = 2 };
enum Order : i32 { BY_VALUE = 0, BY_INDEX = 1 };
enum EditOp : i32 { ADD = 0, SET = 1, SCALE = 2, ABLATE = 3 };
// What `score` makes: scores of candidates and 0 for the others; pre-activations; dot products.
enum What : i32 { ACTIVATIONS = 0, PRE_ACTIVATIONS = 1, DOTS = 2 };
// What became of a token: not finite; to be encoded; nobody asked for it; its list overflowed, so all its scores are taken exactly.
enum State : i32 { NOT_FINITE = 0, READY = 1, UNWANTED = 2, OVERFLOWED = 3 };

// Rows of a host's tensor. Element j of row t is at t * row_stride + (j / layer_size) * layer_stride + j % layer_size.
struct Vectors {
  void *data;
  i64 row_stride, layer_stride;
  i32 layer_size; // the row's whole length where there are no layers
  i32 dtype;
};

// Weights, one row after another.
struct Matrix {
  const void *data;
  i64 stride;
  i32 dtype;
  i32 reserved;
};

// Features in a host's tensors.
struct Features {
  void *values;
  i32 *indices, *counts;
  f32 *row_state;
  i64 values_stride, indices_stride, counts_stride, state_stride;
  i32 width;
  i32 dtype; // of values
  i32 state_width;
  i32 reserved;
};

// The encoding half of an SAE, as in cpu/encoder.rs.
struct Latents {
  Matrix w_enc, w_glu;                 // [n, d]
  const f32 *b_enc;                    // [n], like those below
  const f32 *gain, *b_gate;            // Gated: exp(r_mag), b_gate
  const f32 *b_glu;
  const f32 *scale;                    // what pre-activations are multiplied by
  const f32 *threshold;                // what they must exceed, besides 0
  const f32 *threshold_scale;          // by what they are multiplied to be compared with it
  const f32 *rank_scale;               // by what they are multiplied to compete
  i32 n, d, first;                     // first: global index of latent 0
  i32 selection;
  i32 k;                               // 0 for ALL
  i32 group;                           // latents of a group, GROUP_MAX
};

// What is kept of a token while a call runs.
struct Token {
  f32 state0, state1; // the row state: the mean if one was subtracted, then sigma or the factor
  i32 state;
  f32 x;              // at least its norm
  f32 dx;             // at least what rounding lost, with room for the rounding of everything else
  f32 floor;          // scores below it do not matter
  u32 waiting;        // latents in its list, even when more than fit
  i32 active;         // candidates found
};

// A latent's score is within `lost * token.x + norm * token.dx + reach` of `factor * product + bias`.
struct Bound {
  f32 factor, bias, lost, norm, reach, threshold, reserved0, reserved1;
};

// An edit, like sae_edit.
struct Edit {
  i32 feature, op;
  f32 strength, limit;
  i32 only_active, reserved0, reserved1, reserved2;
};

// Lists of edits, and which row has which.
struct Edits {
  const Edit *edits;   // [slots, per_slot]
  const i32 *lengths;  // [slots]
  const i32 *row_slot; // [T], or null: slot 0 for all
  i64 row_slot_stride;
  i32 slots, per_slot;
};

// prepare: from the host's activations to x'', the token's statistics, its bf16 image and what that lost.
// Grid T, block 128. Writes what is not null. `overflowed[0]` must be 0.
struct PrepareParams {
  Vectors x, addend;
  const f32 *b_dec;    // null unless it is subtracted
  const i32 *wanted;   // [T]: 0 leaves a token out; null: all
  f32 *out;            // [T, padded]; must not be null if tokens is not
  f32 *raw;            // [T, padded]: x + addend alone
  u16 *rounded;        // [T, rounded_stride], bf16, zeros from d on
  Token *tokens;       // [T]
  i32 *overflowed;     // [1 + T]: how many, then which
  const f32 *peaks;    // [2], from `bounds`; null where nothing is screened
  i64 padded, rounded_stride;
  i32 rows, d, normalization, center, round_sum, reserved;
};

// bounds: once for each model. The encoder in bf16, and how far scores can be from what it gives.
// Grid ceil(n / 8), block 256: a warp a latent. `peaks` must hold zeros.
struct BoundsParams {
  Latents latents;
  u16 *rounded;        // [n, rounded_stride], zeros from d on; null: W_enc is bf16 and used as it is
  Bound *bounds;       // [n]
  u32 *peaks;          // [2]: bits of the largest norm times factor, and of the largest magnitude besides
  i64 rounded_stride;
};

// score: canonical scores of all latents. Grid ceil(n / SCORE_LATENTS) * ceil(T / SCORE_TOKENS), block 256.
// Rows of tokens that are not finite become NaN.
struct ScoreParams {
  Latents latents;
  const f32 *x;        // [T, padded]
  const Token *tokens; // [T], or null: all finite
  Vectors out;         // [T, n]
  i64 padded;
  i32 rows, what;
};

// score_one: the same for T = 1. Grid ceil(n / SCORE_LATENTS), block 256.
struct ScoreOneParams {
  ScoreParams score;
};

// winnow: of the scores of a range of latents, the largest as keys into the token's list, where they wait to be selected from;
// candidates are counted. For many latents; `keys_stride` is at least ceil(n / WINNOW_LATENTS) * min(gathered, WINNOW_LATENTS).
// Grid (ceil(n / WINNOW_LATENTS), T), block 256. Afterwards `select` with `counted` and length -keys_stride.
struct WinnowParams {
  const f32 *scores;   // [T, scores_stride]
  u64 *keys;           // [T, keys_stride]
  Token *tokens;
  i64 scores_stride, keys_stride;
  i32 rows, n, first, gathered;
};

// score_selected: activations of chosen latents that do not compete. Grid (ceil(m / 64), T), block 256.
struct ScoreSelectedParams {
  Latents latents;
  const f32 *x;
  const Token *tokens;
  const i32 *ids;      // [m], global
  Vectors out;         // [T, m]
  u64 *ignored;        // counts ids that are none, once each
  i64 padded, ids_stride;
  i32 rows, m;
};

// screen: bf16 products of a range of latents, of which those whose bound reaches the floor are put into their tokens' lists.
// Grid ceil(count / SCREEN_LATENTS) * ceil(T / SCREEN_TOKENS), block 256, SCREEN_SHARED bytes of dynamic shared memory.
// Rows start at multiples of 16 bytes; strides are multiples of 8; elements from d to the next multiple of 8 are 0.
struct ScreenParams {
  const u16 *x;        // [T, x_stride]
  const u16 *w;        // [n, w_stride]
  const Bound *bounds; // [n]
  Token *tokens;       // [T]
  u64 *waiting;        // [T, capacity]: upper bound's bits above, latent (from 0) below
  f32 *lower;          // [T, capacity]
  i64 x_stride, w_stride, capacity;
  i32 rows, d;
  i32 first, count;    // the latents
  i32 magnitude;       // whether scores compete by magnitude
  i32 reserved;
};

// fast: as `screen`, but the products are taken for the scores' own: what reaches the floor is put into the lists as keys.
// Grid and rows likewise.
struct FastParams {
  Latents latents;     // W_enc itself is not read; no GLU
  const u16 *x;        // [T, x_stride]
  const u16 *w;        // [n, w_stride]
  Token *tokens;       // [T]
  u64 *waiting;        // [T, capacity]: keys
  f32 *lower;          // [T, capacity]: their magnitudes
  i64 x_stride, w_stride, capacity;
  i32 rows;
  i32 first, count;    // the latents
  i32 reserved;
};

// product: such scores of all latents. Grid ceil(n / SCREEN_LATENTS) * ceil(T / SCREEN_TOKENS), block 256, shared memory likewise.
// Rows of tokens that are not finite become NaN.
struct ProductParams {
  Latents latents;
  const u16 *x, *w;
  const Token *tokens;
  Vectors out;         // [T, n]
  i64 x_stride, w_stride;
  i32 rows, what;      // not DOTS
};

// tighten: raises floors to the k-th largest lower bound and drops what is below. Tokens with more than `capacity` waiting
// overflow. Grid T, block 256.
struct TightenParams {
  Token *tokens;
  u64 *waiting;
  f32 *lower;
  i32 *overflowed;
  i64 capacity;
  i32 rows;
  i32 k;               // 0: floors stay
};

// rescore: canonical scores of what waits; the likeliest k first, which may spare the others. Lists of latents become lists
// of keys, 0 where a latent is no candidate. Grid T, block 256; or (T, blocks), where each takes its part and spares nothing.
struct RescoreParams {
  Latents latents;
  const f32 *x;
  Token *tokens;
  u64 *waiting;
  f32 *lower;
  i64 padded, capacity;
  i32 rows, reserved;
};

// exact: the keys of tokens that overflowed, from the scores of all latents: of each range of latents `gathered` at most. Not for
// GLU encoders. Grid: as many blocks as the device runs at once, at most ceil(T / EXACT_TOKENS) * ranges, or T if gathered > EXACT_KEYS,
// where ranges is 1; block 256. `capacity` must be at least gathered + 1024 and ranges * gathered.
struct ExactParams {
  Latents latents;
  const f32 *x;
  Token *tokens;       // `active` must be 0
  u64 *waiting;
  const i32 *overflowed;
  i64 padded, capacity;
  i32 gathered, ranges;
};

// group_best: the largest of each group, as keys. Grid (ceil(groups / 256), T), block 256.
struct GroupBestParams {
  const f32 *scores;   // [T, scores_stride]
  u64 *keys;           // [T, keys_stride], n / group of them
  i64 scores_stride, keys_stride;
  i32 rows, n, group, first;
};

// select: the largest of each token, in order; features. Grid T, block 256.
// The source is `keys`, `length` of them (negative: as many as wait, at most -length), or else `scores` of n latents.
// `kept` gets the `gathered` largest by value, and 0 behind them; features are as many of the first as fit. With rank_scale the
// gathered are scored anew and sorted by that.
struct SelectParams {
  Latents latents;
  const u64 *keys;
  const f32 *scores;
  const f32 *x;        // for rank_scale
  Token *tokens;       // [T]; `active` is written: candidates, at most k
  u64 *kept;           // [T, kept_stride], kept_stride a power of two, at least gathered; not `keys`; null: no use for it, if gathered <= 1024
  Features out;        // values null: none
  i64 padded, keys_stride, scores_stride, kept_stride;
  i32 rows, length;
  i32 gathered;
  i32 order;           // of features
  i32 counted;         // 1: the tokens' `active` is known already
  i32 reserved;
};

// scatter: dense activations from kept keys. Grid T, block 256.
struct ScatterParams {
  const u64 *kept;
  const Token *tokens;
  Vectors out;         // [T, n]
  i64 kept_stride;
  i32 rows, n, first, limit;
};

// lookup: activations of chosen latents from kept keys. Grid T, block 128.
struct LookupParams {
  const u64 *kept;
  const Token *tokens;
  const i32 *ids;
  Vectors out;         // [T, m]
  u64 *ignored;
  i64 kept_stride, ids_stride;
  i32 rows, m, n, first, limit, reserved;
};

// decode: a gather of decoder rows in the order of the slots. Grid (ceil(d / DECODE_COLUMNS), T), block 128.
struct DecodeParams {
  Matrix w_dec;        // [n, d]
  const f32 *b_dec;
  const f32 *norms;    // what values are divided by, or null
  const f32 *skip;     // [T, skip_stride]: what is added at last
  Features features;   // values null: kept keys instead
  const u64 *kept;
  const Token *tokens; // with kept
  Vectors out;
  u64 *ignored;        // counts indices that are none
  i64 skip_stride, kept_stride;
  i32 rows, d, n, first, limit;
  i32 normalization, center, denormalize;
};

// steer_plan: which rows must be encoded because their edits need to know which of the competing latents won.
// Grid ceil(T / 128), block 128.
struct SteerPlanParams {
  Edits edits;
  Features known;      // values null: none
  i32 *wanted;         // [T]
  i32 rows, reserved;
};

// steer: the effect of edits added to activations. Grid T, block 256. Activations come from known features, else from kept
// keys if latents compete, else from scores of single latents.
struct SteerParams {
  Latents latents;
  Edits edits;
  Features known;
  const f32 *x;        // [T, padded]
  const Token *tokens; // [T]
  const u64 *kept;
  Matrix w_dec;
  const f32 *norms;
  Vectors y, out;
  f32 *deltas;         // [T, per_slot]
  u64 *ignored;        // counts slots that are none
  i64 padded, kept_stride;
  i32 rows, d, limit;  // d: of y
  i32 normalization, center, denormalize;
};

// merge_part: one shard's features as keys, from `offset` on, 0 where there is none; the statistics are the first part's.
// Grid T, block 128. Afterwards `select` with `counted`.
struct MergePartParams {
  Features part;
  u64 *keys;           // [T, keys_stride]
  Token *tokens;
  u64 *ignored;
  i64 keys_stride, offset;
  i32 rows;
  i32 is_first;        // 1: tokens start anew
};

// Training. Features are those of `select` BY_INDEX, f32; tokens that are left out have count -1. W_enc, W_dec and everything kept of
// them are f32, [n, d].

// explain: what a token's codes leave of its target, and how the loss pull / 2 * sum (target - sum z W_dec)^2 pulls at each of them.
// Grid T, block 256.
struct ExplainParams {
  Features codes;      // indices: of the encoder, or of `ids`
  const i32 *ids;      // the latents' numbers, where the encoder holds a choice of them; null: all
  const f32 *targets;  // [T, padded]
  const f32 *w_dec;
  f32 *leftover;       // [T, padded], zeros from d on
  f32 *pulls;          // [T, width]: the loss's gradient by each pre-activation
  double *errors;      // [T]: the square of what is left over; 0 if left out
  u32 *starts;         // [n + 1], zeros before: counts how often each latent is active
  i64 padded;
  i32 rows, d;
  f32 pull;
  i32 reserved;
};

// lists: counts become the places where latents' lists start. One block of 1024.
struct ListsParams {
  u32 *starts;         // [n + 1]
  u32 *ends;           // [n]: the same places, for `fill` to move on
  i32 n, reserved;
};

// fill: the slots of codes, latent by latent, in no order. Grid ceil(T * width / 256), block 256.
struct FillParams {
  Features codes;
  const i32 *ids;
  u32 *ends;
  u32 *slots;          // [T * width]
  i32 rows, reserved;
};

// backward: adds the gradients by W_enc, b_enc and W_dec, latent by latent, over tokens in their order. Grid n, block 128.
struct BackwardParams {
  Features codes;
  const u32 *starts;
  u32 *slots;          // is put into order
  const f32 *inputs, *leftover; // [T, padded]
  const f32 *pulls;
  f32 *w_enc, *w_dec;  // [n, d]: where `touched` is 0 they count as 0, whatever they hold
  f32 *b_enc;          // [n]
  i32 *touched;        // [n]
  i64 padded;
  i32 d;
  f32 pull;
};

// update: one step of a matrix, or of a vector as a matrix of one row: the part of the gradient parallel to the row is removed, moving
// average, Adam, unit norm, and the row in bf16. Grid as many rows, block 256.
struct UpdateParams {
  f32 *w, *m, *v, *ema; // [n, stride]; ema may be null
  const f32 *g;
  const i32 *touched;  // [n]: 0: the gradient is 0; null: all are touched
  u16 *rounded;        // [n, rounded_stride], or null
  i64 stride, rounded_stride;
  i32 d;
  i32 is_decoder;      // 1: the parallel part goes, and rows get unit norm
  f32 gradient_scale, beta1, beta2, rate, root_scale, epsilon, ema_decay;
  i32 reserved;
};

constexpr i32 SCORE_LATENTS = 64, SCORE_TOKENS = 4;
constexpr i32 WINNOW_LATENTS = 4096;
constexpr i32 SCREEN_LATENTS = 128, SCREEN_TOKENS = 128, SCREEN_SHARED = 65536;
constexpr i32 EXACT_TOKENS = 4, EXACT_KEYS = 512;
constexpr i32 DECODE_COLUMNS = 512;

#define KERNELS(X)                                                                                                             \
  X(prepare, PrepareParams)                                                                                                    \
  X(bounds, BoundsParams)                                                                                                      \
  X(score, ScoreParams)                                                                                                        \
  X(score_one, ScoreOneParams)                                                                                                 \
  X(winnow, WinnowParams)                                                                                                      \
  X(score_selected, ScoreSelectedParams)                                                                                       \
  X(screen, ScreenParams)                                                                                                      \
  X(fast, FastParams)                                                                                                          \
  X(product, ProductParams)                                                                                                    \
  X(tighten, TightenParams)                                                                                                    \
  X(rescore, RescoreParams)                                                                                                    \
  X(exact, ExactParams)                                                                                                        \
  X(group_best, GroupBestParams)                                                                                               \
  X(select, SelectParams)                                                                                                      \
  X(scatter, ScatterParams)                                                                                                    \
  X(lookup, LookupParams)                                                                                                      \
  X(decode, DecodeParams)                                                                                                      \
  X(steer_plan, SteerPlanParams)                                                                                               \
  X(steer, SteerParams)                                                                                                        \
  X(merge_part, MergePartParams)                                                                                               \
  X(explain, ExplainParams)                                                                                                    \
  X(lists, ListsParams)                                                                                                        \
  X(fill, FillParams)                                                                                                          \
  X(backward, BackwardParams)                                                                                                  \
  X(update, UpdateParams)
