package sae

// #include "shim.h"
import "C"

import (
	"cmp"
	"unsafe"
)

// A Trainer is one training run: its weights, the optimizer's state and counters. One goroutine at a time may use it; a
// call that comes while another runs is refused with [ErrBadState].
type Trainer struct{ handle }

// A Recipe is what is trained, and by which loss.
type Recipe int32

const (
	RecipeTopK       Recipe = C.SAE_RECIPE_TOP_K       // the k largest of each token
	RecipeMultiTopK  Recipe = C.SAE_RECIPE_MULTI_TOP_K // TopK by the losses of k and 4 k together
	RecipeBatchTopK  Recipe = C.SAE_RECIPE_BATCH_TOP_K // the k largest of each token of a batch on average
	RecipeMatryoshka Recipe = C.SAE_RECIPE_MATRYOSHKA  // BatchTopK of which every prefix is an SAE too
	RecipeAbsTopK    Recipe = C.SAE_RECIPE_ABS_TOP_K   // the k largest in magnitude of each token
	RecipeReLU       Recipe = C.SAE_RECIPE_RELU        // all positive pre-activations, with an L1 penalty
	RecipeJumpReLU   Recipe = C.SAE_RECIPE_JUMP_RELU   // those beyond trained thresholds, with a penalty on their number
	RecipeGated      Recipe = C.SAE_RECIPE_GATED       // those whose gates are open, with an L1 penalty on the gates
)

// A Penalty is JumpReLU's.
type Penalty int32

const (
	PenaltyStep      Penalty = C.SAE_PENALTY_STEP      // L0: the number of active latents
	PenaltyTanh      Penalty = C.SAE_PENALTY_TANH      // the sum of tanh(4 z), nearly their number
	PenaltyQuadratic Penalty = C.SAE_PENALTY_QUADRATIC // how far their number is from TargetL0, squared, times 2 / TargetL0
)

// A Scaling is what activations are multiplied by before anything else, which is folded into exports.
type Scaling int32

const (
	ScalingRecipe     Scaling = C.SAE_SCALING_RECIPE      // the recipe's; see the header
	ScalingNone       Scaling = C.SAE_SCALING_NONE        // activations are trained on as they are
	ScalingRootWidth  Scaling = C.SAE_SCALING_ROOT_WIDTH  // so that their mean norm is sqrt(d)
	ScalingUnitSquare Scaling = C.SAE_SCALING_UNIT_SQUARE // so that the mean square of their norm is 1
)

// TrainFlags change what a run is.
type TrainFlags uint32

const (
	NoAux      TrainFlags = C.SAE_TRAIN_NO_AUX     // no auxiliary loss on dead latents
	NoEMA      TrainFlags = C.SAE_TRAIN_NO_EMA     // no moving average of the weights, which saves its memory
	Transcoder TrainFlags = C.SAE_TRAIN_TRANSCODER // batches have targets, which are what is reconstructed
	Skip       TrainFlags = C.SAE_TRAIN_SKIP       // a transcoder adds W_skip x to what it reconstructs
)

// Frozen says which weights stay as the run's start has them.
type Frozen uint32

const (
	FreezeWEnc      Frozen = C.SAE_FREEZE_W_ENC
	FreezeBEnc      Frozen = C.SAE_FREEZE_B_ENC
	FreezeWDec      Frozen = C.SAE_FREEZE_W_DEC
	FreezeBDec      Frozen = C.SAE_FREEZE_B_DEC
	FreezeThreshold Frozen = C.SAE_FREEZE_THRESHOLD
	FreezeBGate     Frozen = C.SAE_FREEZE_B_GATE
	FreezeRMag      Frozen = C.SAE_FREEZE_R_MAG
	FreezeWSkip     Frozen = C.SAE_FREEZE_W_SKIP
)

// TrainOptions say how a run is made. D, Latents and, for recipes that keep a number of latents, K must be set; zero is
// a good default of all others. What a recipe has no use for must be zero.
type TrainOptions struct {
	// Width of the activations.
	D int
	// Number of latents.
	Latents int
	// Latents kept per token, on average where a batch's tokens compete; 0 for recipes with a penalty.
	K int
	// Dead latents that the auxiliary loss uses per token; 0: D / 2.
	KAux int
	// The most tokens of a batch; 0: 8192.
	MaxBatchTokens int
	// Tokens without firing after which a latent is dead; 0: 10,000,000, or 5 % of TotalTokens if that is less.
	DeadAfterTokens uint64
	// Optimizer steps over which the learning rate rises from 0; 0: none.
	WarmupSteps uint64
	// Planned length of the run in tokens; 0: not known. It may end sooner or later.
	TotalTokens uint64
	// Seed of the initial weights and of what resampling draws, the only random numbers of a run.
	Seed uint64
	// Who computes; nil: the calling thread alone. The numbers do not depend on it.
	Pool *Pool
	// What the inputs look like, to be kept with what is exported; nil: not known.
	Convention *Convention
	// Adam's learning rate; 0: 2e-4 / sqrt(Latents / 16384).
	LearningRate float32
	// The last part of TotalTokens, 0 to 1, over which the learning rate falls to 0.
	DecayFraction float32
	// The auxiliary loss's coefficient; 0: 1/32.
	AuxCoefficient float32
	// Adam's beta 1; 0: 0.9, but 0 for JumpReLU and Gated.
	AdamBeta1 float32
	// Adam's beta 2; 0: 0.999.
	AdamBeta2 float32
	// Adam's epsilon; 0: 6.25e-10.
	AdamEpsilon float32
	// Global norm that gradients are clipped to; 0: no clipping.
	ClipNorm float32
	// Decay of the weights' moving average; 0: 0.999.
	EMADecay float32
	// What is done to activations first: NormalizationNone or LayerNorm.
	Normalization Normalization
	Flags         TrainFlags
	// Width of a transcoder's targets; 0: D.
	DOut int
	// Latents kept at the start of the run; 0: K.
	KStart int
	// Optimizer steps over which KStart becomes K, linearly.
	KAnnealSteps uint64
	// For Matryoshka: the sizes of the nested SAEs, ascending up to Latents; none: a sixteenth of the latents, an
	// eighth, a quarter, a half, and all.
	Prefixes []int
	// By what the squared error of each is multiplied in the loss, as many as Prefixes; none: 1.
	PrefixWeights []float32
	// Optimizer steps over which the penalty's coefficient rises from 0; 0: none.
	SparsityWarmupSteps uint64
	// Optimizer steps after each of which dead latents start anew from badly explained tokens; 0: never. Recipes that
	// have an auxiliary loss need NoAux with it.
	ResampleEvery uint64
	// The penalty's coefficient, against squared errors summed over the width; 0: 5 for ReLU, else 1.
	SparsityCoefficient float32
	// For PenaltyQuadratic: the number of active latents that it pulls to.
	TargetL0 float32
	// For JumpReLU: how far around a threshold its gradient is estimated; 0: 0.05.
	Bandwidth float32
	// For JumpReLU: the thresholds at the start; 0: 0.01.
	InitialThreshold float32
	Recipe           Recipe
	Penalty          Penalty
	Scaling          Scaling
	Frozen           Frozen
	// Layers of the model that are read and written at once, by a crosscoder; 0: 1. With more, what is said to be [T, D] is
	// [T, Layers, D].
	Layers int
}

func (o *TrainOptions) c(s *scope) *C.sae_train_options {
	if o == nil {
		return nil
	}
	if len(o.PrefixWeights) != 0 && len(o.PrefixWeights) != len(o.Prefixes) {
		s.fail(failed(ErrInvalidArgument, "prefix weights: there are %d, for %d prefixes; give one for each, or none",
			len(o.PrefixWeights), len(o.Prefixes)))
	}
	c := &allocate[C.sae_train_options](s, 1)[0]
	*c = C.sae_train_options{
		struct_size:           C.sizeof_sae_train_options,
		d:                     C.int64_t(o.D),
		n_latents:             C.int64_t(o.Latents),
		k:                     C.int64_t(o.K),
		k_aux:                 C.int64_t(o.KAux),
		max_batch_tokens:      C.int64_t(o.MaxBatchTokens),
		dead_after_tokens:     C.uint64_t(o.DeadAfterTokens),
		warmup_steps:          C.uint64_t(o.WarmupSteps),
		total_tokens:          C.uint64_t(o.TotalTokens),
		seed:                  C.uint64_t(o.Seed),
		pool:                  s.pool(o.Pool),
		convention:            o.Convention.c(s),
		learning_rate:         C.float(o.LearningRate),
		decay_fraction:        C.float(o.DecayFraction),
		aux_coefficient:       C.float(o.AuxCoefficient),
		adam_beta1:            C.float(o.AdamBeta1),
		adam_beta2:            C.float(o.AdamBeta2),
		adam_epsilon:          C.float(o.AdamEpsilon),
		clip_norm:             C.float(o.ClipNorm),
		ema_decay:             C.float(o.EMADecay),
		normalization:         C.int32_t(o.Normalization),
		flags:                 C.uint32_t(o.Flags),
		d_out:                 C.int64_t(o.DOut),
		k_start:               C.int64_t(o.KStart),
		k_anneal_steps:        C.uint64_t(o.KAnnealSteps),
		prefixes:              copied(s, o.Prefixes, func(n int) C.int64_t { return C.int64_t(n) }),
		prefix_weights:        copied(s, o.PrefixWeights, func(w float32) C.float { return C.float(w) }),
		n_prefixes:            C.int64_t(len(o.Prefixes)),
		sparsity_warmup_steps: C.uint64_t(o.SparsityWarmupSteps),
		resample_every:        C.uint64_t(o.ResampleEvery),
		sparsity_coefficient:  C.float(o.SparsityCoefficient),
		target_l0:             C.float(o.TargetL0),
		bandwidth:             C.float(o.Bandwidth),
		initial_threshold:     C.float(o.InitialThreshold),
		recipe:                C.int32_t(o.Recipe),
		penalty:               C.int32_t(o.Penalty),
		scaling:               C.int32_t(o.Scaling),
		frozen:                C.uint32_t(o.Frozen),
		layers:                C.int64_t(o.Layers),
	}
	return c
}

// NewTrainer makes a run. It is started by [Trainer.InitFrom] or [Trainer.WarmStart].
func NewTrainer(options TrainOptions) (*Trainer, error) {
	return trainer(&options, func(s *scope, how *C.sae_train_options, out **C.sae_trainer, err **C.sae_error) C.sae_status {
		return C.sae_trainer_create(how, out, err)
	})
}

// Resume continues a run from its last checkpoint. What is set in options must agree with the checkpoint, except for
// Pool and MaxBatchTokens; they may be nil. The data continues at [TrainProgress].RowsGiven.
func Resume(dir string, options *TrainOptions) (*Trainer, error) {
	return trainer(options, func(s *scope, how *C.sae_train_options, out **C.sae_trainer, err **C.sae_error) C.sae_status {
		name := s.path("dir", dir)
		if s.err != nil {
			return C.SAE_ERROR_INVALID_ARGUMENT
		}
		return C.sae_trainer_resume(name, how, out, err)
	})
}

func trainer(
	options *TrainOptions, make func(*scope, *C.sae_train_options, **C.sae_trainer, **C.sae_error) C.sae_status,
) (*Trainer, error) {
	var s scope
	defer s.end()
	how := options.c(&s)
	if s.err != nil {
		return nil, s.err
	}
	var c *C.sae_trainer
	var failure *C.sae_error
	make(&s, how, &c, &failure)
	if err := cmp.Or(s.err, take(failure)); err != nil {
		return nil, err
	}
	t := &Trainer{}
	t.own("trainer", unsafe.Pointer(c), func(c unsafe.Pointer) { C.sae_trainer_free((*C.sae_trainer)(c)) }, onHost)
	return t, nil
}

// InitFrom starts a run from a first sample [S, d], some thousand tokens that look like the rest: b_dec becomes its
// geometric median, the loss is divided by its variance, and random weights are scaled to it. target is absent, but for
// a transcoder: a sample of its targets [S, d_out].
func (t *Trainer) InitFrom(sample, target Tensor) error {
	return t.start(sample, target, nil)
}

// WarmStart starts a run from the weights of a model of the same sizes, of an architecture that the recipe trains or
// can start from; the loss is divided by the variance of the sample [S, d]. target is absent, but for a transcoder: a
// sample of its targets [S, d_out].
func (t *Trainer) WarmStart(model *Model, sample, target Tensor) error {
	if model == nil {
		return failed(ErrInvalidArgument, "model: it is nil, give one to start from")
	}
	return t.start(sample, target, model)
}

func (t *Trainer) start(sample, target Tensor, model *Model) error {
	var s scope
	defer s.end()
	from, to := s.tensor("sample", sample), s.tensor("target", target)
	var weights *C.sae_model
	if model != nil {
		weights = (*C.sae_model)(s.share(&model.handle))
	}
	if s.err != nil {
		return s.err
	}
	c, err := t.acquire()
	if err != nil {
		return err
	}
	defer t.release()
	var failure *C.sae_error
	switch {
	case model == nil && to == nil:
		C.sae_trainer_init_from((*C.sae_trainer)(c), from, &failure)
	case model == nil:
		C.sae_trainer_init_transcoder((*C.sae_trainer)(c), from, to, &failure)
	case to == nil:
		C.sae_trainer_warm_start((*C.sae_trainer)(c), weights, from, &failure)
	default:
		C.sae_trainer_warm_start_transcoder((*C.sae_trainer)(c), weights, from, to, &failure)
	}
	return take(failure)
}

// A Batch is what one call trains on.
type Batch struct {
	// [T, d], f32, f16 or bf16; T from 0 to MaxBatchTokens.
	X Tensor
	// [T, d_out]: what a transcoder reconstructs; absent for an autoencoder.
	Target Tensor
	// [T], i32: tokens with 0 are left out, such as the attention sink; absent: all count.
	RowMask Tensor
	// Keep the gradients and make no step; the next call without it makes one with the mean over all tokens since.
	Accumulate bool
}

// TrainStats are what a step tells about itself. Losses, FVU and L0 are of its own tokens, under the weights they were
// computed with.
type TrainStats struct {
	// Optimizer steps made so far.
	Step uint64
	// Tokens trained on since the run began.
	TokensSeen uint64
	// Tokens of this call that were trained on, and those left out: by the row mask, and because they were not finite
	// or too large for their square to be.
	Tokens, TokensMasked, TokensNotFinite uint64
	// Latents that are dead after this call, also as a share of all.
	Dead         uint64
	DeadFraction float64
	// What is minimised: MSE + Aux + Sparsity.
	Loss, MSE, Aux, Sparsity float64
	// Fraction of variance unexplained, 0 to 1 and beyond.
	FVU float64
	// Mean count of active latents per token.
	L0 float64
	// Global norm of the gradient before clipping, and the learning rate; 0 if no step was made.
	GradNorm, LearningRate float64
	// Whether this call made an optimizer step, or its gradients wait.
	Applied bool
	// Latents that started anew after the step.
	Resampled uint64
}

// Step trains on a batch: one optimizer step, unless it accumulates. Of run, Addend, Fast and RoundSum are known. A
// call that is refused changes nothing. If the gradient is not finite ([ErrNotFinite]), it is dropped, with all that
// was accumulated, and the weights stay as they are; the batch still counts.
func (t *Trainer) Step(batch Batch, run ...Run) (TrainStats, error) {
	how, err := only(run)
	if err = cmp.Or(err, batch.X.fault("x"), batch.Target.fault("target"), batch.RowMask.fault("row_mask")); err != nil {
		return TrainStats{}, err
	}
	c, err := t.acquire()
	if err != nil {
		return TrainStats{}, err
	}
	defer t.release()
	var flags C.uint32_t
	if batch.Accumulate {
		flags = C.SAE_BATCH_ACCUMULATE
	}
	result := C.go_train_step((*C.sae_trainer)(c), how.c(), batch.X.c, how.Addend.c, batch.Target.c, batch.RowMask.c, flags)
	if result.error != nil {
		return TrainStats{}, take(result.error)
	}
	stats := &result.stats
	return TrainStats{
		Step:            uint64(stats.step),
		TokensSeen:      uint64(stats.tokens_seen),
		Tokens:          uint64(stats.tokens),
		TokensMasked:    uint64(stats.tokens_masked),
		TokensNotFinite: uint64(stats.tokens_not_finite),
		Dead:            uint64(stats.dead),
		DeadFraction:    float64(stats.dead_fraction),
		Loss:            float64(stats.loss),
		MSE:             float64(stats.mse),
		Aux:             float64(stats.aux),
		Sparsity:        float64(stats.sparsity),
		FVU:             float64(stats.fvu),
		L0:              float64(stats.l0),
		GradNorm:        float64(stats.grad_norm),
		LearningRate:    float64(stats.learning_rate),
		Applied:         stats.applied != 0,
		Resampled:       uint64(stats.resampled),
	}, nil
}

// TrainProgress is what a run is, and how far it has come.
type TrainProgress struct {
	D, Latents, K, MaxBatchTokens int
	// Planned length of the run in tokens; 0: not known.
	TotalTokens uint64
	// Optimizer steps made, and tokens trained on so far.
	Step, TokensSeen uint64
	// Rows of all batches so far, those left out included.
	RowsGiven uint64
	// Whether the run was started.
	Started bool
}

// Progress tells what the run is, and how far it has come.
func (t *Trainer) Progress() (TrainProgress, error) {
	trainer, err := t.acquire()
	if err != nil {
		return TrainProgress{}, err
	}
	defer t.release()
	var failure *C.sae_error
	c := C.sae_train_progress{struct_size: C.sizeof_sae_train_progress}
	if C.sae_trainer_progress((*C.sae_trainer)(trainer), &c, &failure); failure != nil {
		return TrainProgress{}, take(failure)
	}
	return TrainProgress{int(c.d), int(c.n_latents), int(c.k), int(c.max_batch_tokens), uint64(c.total_tokens), uint64(c.step),
		uint64(c.tokens_seen), uint64(c.rows_given), c.started != 0}, nil
}

// SetRate makes learning rates the schedule's times rate from the next step on, until it is set again; checkpoints keep it.
func (t *Trainer) SetRate(rate float64) error {
	c, err := t.acquire()
	if err != nil {
		return err
	}
	defer t.release()
	var failure *C.sae_error
	C.sae_trainer_set_rate((*C.sae_trainer)(c), C.double(rate), &failure)
	return take(failure)
}

// Save writes all that is needed to continue to the same bits into a directory, which is made if it is not there.
// Whatever happens, the directory holds the last complete checkpoint.
func (t *Trainer) Save(dir string) error {
	c, err := t.acquire()
	if err != nil {
		return err
	}
	defer t.release()
	var s scope
	defer s.end()
	name := s.path("dir", dir)
	if s.err != nil {
		return s.err
	}
	var failure *C.sae_error
	C.sae_trainer_save((*C.sae_trainer)(c), name, &failure)
	return take(failure)
}

// An Export is which weights of a run become a model.
type Export int32

const (
	// The weights of the last step.
	ExportWeights Export = C.SAE_EXPORT_WEIGHTS
	// Their moving average over the steps, which often reconstructs better.
	ExportEMA Export = C.SAE_EXPORT_EMA
)

// Export makes a model of what was trained so far. Decoder rows have norm 1.
func (t *Trainer) Export(what Export) (*Model, error) {
	c, err := t.acquire()
	if err != nil {
		return nil, err
	}
	defer t.release()
	return made(func(out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_trainer_export((*C.sae_trainer)(c), C.int32_t(what), out, err)
	})
}
