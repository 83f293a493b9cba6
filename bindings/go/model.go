package sae

// #include "shim.h"
import "C"

import "unsafe"

// A Model is an SAE: what it is, and its weights. It never changes, and any number of goroutines may use it at once.
// Sessions keep the weights they need, so it may be closed before them.
type Model struct {
	handle
	where place
}

// LoadFlags say how weights come into memory.
type LoadFlags uint32

const (
	// Leave the matrices in the file and page them in as they are read. The file must then not change while the model
	// lives.
	LoadMap LoadFlags = C.SAE_LOAD_MAP
	// [NewModel] uses the caller's matrices where they are, instead of copying them.
	LoadBorrow LoadFlags = C.SAE_LOAD_BORROW
	// Subtract each token's mean, and add it back after decoding: for SAEs of models whose writing weights were
	// centred, fed by an engine that does not do that.
	LoadCenter LoadFlags = C.SAE_LOAD_CENTER
)

// A Selection is how active latents are chosen, where a file holds both a k and a threshold.
type Selection int32

const (
	SelectionStored    Selection = C.SAE_SELECTION_STORED
	SelectionTopK      Selection = C.SAE_SELECTION_TOP_K
	SelectionThreshold Selection = C.SAE_SELECTION_THRESHOLD
)

// An Architecture says which latents are active.
type Architecture int32

const (
	// Keeps the k largest pre-activations that are positive.
	TopK Architecture = C.SAE_ARCHITECTURE_TOP_K
	// Keeps every positive pre-activation.
	ReLU Architecture = C.SAE_ARCHITECTURE_RELU
	// Keeps a pre-activation that is positive and above its latent's threshold.
	JumpReLU Architecture = C.SAE_ARCHITECTURE_JUMP_RELU
	// Keeps the k pre-activations largest in magnitude, with their signs.
	AbsTopK Architecture = C.SAE_ARCHITECTURE_ABS_TOP_K
	// Keeps the largest of each of k groups of neighbouring latents, if it is positive.
	GroupMax Architecture = C.SAE_ARCHITECTURE_GROUP_MAX
	// Keeps a positive pre-activation whose gate is open.
	Gated Architecture = C.SAE_ARCHITECTURE_GATED
)

// A Normalization is what is done to each token before encoding.
type Normalization int32

const (
	NormalizationNone Normalization = C.SAE_NORMALIZATION_NONE
	// Each token is brought to mean 0 and standard deviation 1, which decoding undoes.
	LayerNorm Normalization = C.SAE_NORMALIZATION_LAYER_NORM
	// Each token is scaled to norm sqrt(d), which decoding undoes.
	ConstantNorm Normalization = C.SAE_NORMALIZATION_CONSTANT_NORM
)

// ModelFlags say what else a model does.
type ModelFlags uint32

const (
	// b_dec is not subtracted from the input before encoding.
	KeepsBDec ModelFlags = C.SAE_MODEL_KEEPS_B_DEC
	// Decoding does not undo the normalization of the input.
	StaysNormalized ModelFlags = C.SAE_MODEL_STAYS_NORMALIZED
	// Pre-activations are multiplied by the norms of their decoder rows, activations divided by them before decoding.
	Rescales ModelFlags = C.SAE_MODEL_RESCALES
	// There is a skip path, W_skip, from the raw input to the output.
	HasSkip ModelFlags = C.SAE_MODEL_HAS_SKIP
	// Each token's mean is subtracted before all else, and added back at the end.
	Centers ModelFlags = C.SAE_MODEL_CENTERS
	// Latents are chosen by their pre-activations times the norms of their decoder rows; activations stay without the
	// factor.
	Selects ModelFlags = C.SAE_MODEL_SELECTS
	// Pre-activations are multiplied by the sigmoid of a second encoder's, W_glu and b_glu.
	HasGLU ModelFlags = C.SAE_MODEL_HAS_GLU
)

// LoadOptions say how to load. Zero values, and nil: everything as the file has it, copied into the CPU's memory.
type LoadOptions struct {
	// The format's name, to skip recognition; see [Formats].
	Format string
	// Which model, where the path holds several: the name of a file, with or without its extension, or of a directory.
	Member string
	// What the file does not say, or says wrongly: each field that is set replaces the file's.
	Convention *Convention
	// Load these of the stored latents alone; they keep their indices. For hosts that shard latents over devices.
	FirstLatent int
	// How many from FirstLatent on; 0: all.
	Latents int
	// Load so many of the first latents alone, as a model of their own (Matryoshka: [Info].Prefixes); 0: all.
	Prefix int
	// How many latents are kept per token; 0: the file's.
	K int
	// Where the model shall live.
	Device Device
	// The type to keep matrices in; zero: as stored.
	DType DType
	Flags LoadFlags
	// The factor by which training multiplied activations, for files that say that there was one but not which; 0:
	// none.
	ActivationScale float32
	Selection       Selection
	// Whether b_dec is subtracted from the input, for files that do not say it, or to decide otherwise.
	SubtractBDec Tri
	// For files that do not say what is done to each token before encoding; 0: as the file says.
	Normalization Normalization
}

func (o *LoadOptions) c(s *scope) *C.sae_load_options {
	if o == nil {
		o = &LoadOptions{}
	}
	c := &allocate[C.sae_load_options](s, 1)[0]
	*c = C.sae_load_options{
		struct_size:      C.sizeof_sae_load_options,
		format:           s.text("format", o.Format),
		member:           s.text("member", o.Member),
		convention:       o.Convention.c(s),
		first_latent:     C.int64_t(o.FirstLatent),
		n_latents:        C.int64_t(o.Latents),
		prefix:           C.int64_t(o.Prefix),
		k:                C.int64_t(o.K),
		device:           o.Device.c(),
		dtype:            o.DType.c,
		flags:            C.uint32_t(o.Flags),
		activation_scale: C.float(o.ActivationScale),
		selection:        C.int32_t(o.Selection),
		subtract_b_dec:   C.int32_t(o.SubtractBDec),
		normalization:    C.int32_t(o.Normalization),
	}
	return c
}

// Load reads a model from a file, or from a directory that holds one. The format is recognised by content. A file that
// is not sound is refused with [ErrFormat], weights that are not finite with [ErrNotFinite]. options may be nil.
func Load(path string, options *LoadOptions) (*Model, error) {
	var s scope
	defer s.end()
	name, how := s.path("path", path), options.c(&s)
	if s.err != nil {
		return nil, s.err
	}
	return made(func(model **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_load(name, how, model, err)
	})
}

// LoadMemory tells what loading with these options would need; no weight is read. options may be nil.
func LoadMemory(path string, options *LoadOptions) (Memory, error) {
	var s scope
	defer s.end()
	name, how := s.path("path", path), options.c(&s)
	if s.err != nil {
		return Memory{}, s.err
	}
	return measured(func(memory *C.sae_memory, err **C.sae_error) C.sae_status {
		return C.sae_model_memory(name, how, memory, err)
	})
}

// A model that a call of the library's makes.
func made(make func(**C.sae_model, **C.sae_error) C.sae_status) (*Model, error) {
	var c *C.sae_model
	var failure *C.sae_error
	if make(&c, &failure); failure != nil {
		return nil, take(failure)
	}
	info := C.sae_info{struct_size: C.sizeof_sae_info}
	if C.sae_model_info(c, &info, &failure); failure != nil {
		C.sae_model_free(c)
		return nil, take(failure)
	}
	model := &Model{where: Device{Type: DeviceType(info.device.device_type)}.place()}
	model.own("model", unsafe.Pointer(c), func(c unsafe.Pointer) { C.sae_model_free((*C.sae_model)(c)) }, model.where)
	return model, nil
}

// A model that is made of this one.
func (m *Model) derived(make func(*C.sae_model, **C.sae_model, **C.sae_error) C.sae_status) (*Model, error) {
	c, err := m.share()
	if err != nil {
		return nil, err
	}
	defer m.unshare()
	return made(func(out **C.sae_model, err **C.sae_error) C.sae_status { return make((*C.sae_model)(c), out, err) })
}

// A Memory is what something needs, in bytes.
type Memory struct {
	// Held as long as the object lives.
	Resident uint64
	// Mapped from a file: address space, paged in as it is read.
	Mapped uint64
	// The most that is allocated at any moment of making it, Resident included.
	Peak uint64
	// Of a session: working memory, in Resident (on a GPU, in Device) unless the caller brings it with each call.
	Workspace uint64
	// Held in the GPU's memory, if the model is on one.
	Device uint64
}

func measured(measure func(*C.sae_memory, **C.sae_error) C.sae_status) (Memory, error) {
	var failure *C.sae_error
	c := C.sae_memory{struct_size: C.sizeof_sae_memory}
	if measure(&c, &failure); failure != nil {
		return Memory{}, take(failure)
	}
	return Memory{uint64(c.resident), uint64(c.mapped), uint64(c.peak), uint64(c.workspace), uint64(c.device)}, nil
}

// SaveOptions say how to save. Zero values, and nil: in the library's own format, with the types that the matrices
// have.
type SaveOptions struct {
	// The format's name; see [Formats].
	Format string
	// The type to write matrices in; zero: as they are kept.
	DType DType
}

// Save writes the model to a file, or a directory where the format is one. Files appear whole or not at all. What a
// format cannot say is refused with [ErrUnsupported]. options may be nil.
func (m *Model) Save(path string, options *SaveOptions) error {
	c, err := m.share()
	if err != nil {
		return err
	}
	defer m.unshare()
	var s scope
	defer s.end()
	how := C.sae_save_options{struct_size: C.sizeof_sae_save_options}
	if options != nil {
		how.format, how.dtype = s.text("format", options.Format), options.DType.c
	}
	name := s.path("path", path)
	if s.err != nil {
		return s.err
	}
	var failure *C.sae_error
	C.sae_model_save((*C.sae_model)(c), name, &how, &failure)
	return take(failure)
}

// A Hook is a place in a language model, as the file names it, and where that was understood, as others do.
type Hook struct {
	Name            string
	TransformerLens string // blocks.8.hook_resid_post
	HuggingFace     string // model.layers.8
	GGML            string // l_out-8
}

// An Info is what a model is.
type Info struct {
	Architecture  Architecture
	Normalization Normalization
	Flags         ModelFlags
	// The type that matrices are kept in.
	DType  DType
	Device Device
	// Widths of the input and the output; of a crosscoder, all its layers together.
	DIn, DOut int
	// Layers of the language model that are read and written at once; 1 but for crosscoders.
	LayersIn, LayersOut int
	// Latents held here, the index of the first of them, and if this is a shard, the latents of the whole model.
	Latents, FirstLatent, ShardOf int
	// Latents kept per token; 0 where the architecture has no such number.
	K int
	// How many of the first latents make a smaller model, for each size that a Matryoshka SAE was trained at,
	// ascending.
	Prefixes []int
	// Floats per token that features carry for decoding; 0 where decoding undoes nothing.
	RowStateWidth int
	// Bytes of the weights.
	Bytes uint64
	// The format it was loaded from, "" if from none.
	Format string
	// What loading inferred, assumed or left aside, one note a line.
	Notes string
	// The language model whose activations it was trained on.
	ModelName string
	// Where the input is read, and where the output belongs if elsewhere.
	Hook, HookOut Hook
	// Token positions left out of training.
	ExcludedPositions []uint32
	// Tokens per context in training; 0: unknown.
	ContextSize            int
	PrependBOS             Tri
	CenteredWritingWeights Tri
	FoldedLayerNorm        Tri
}

// Info tells what the model is.
func (m *Model) Info() (Info, error) {
	model, err := m.share()
	if err != nil {
		return Info{}, err
	}
	defer m.unshare()
	var failure *C.sae_error
	c := C.sae_info{struct_size: C.sizeof_sae_info}
	if C.sae_model_info((*C.sae_model)(model), &c, &failure); failure != nil {
		return Info{}, take(failure)
	}
	return Info{
		Architecture:  Architecture(c.architecture),
		Normalization: Normalization(c.normalization),
		Flags:         ModelFlags(c.flags),
		DType:         DType{c.dtype},
		Device:        Device{DeviceType(c.device.device_type), int(c.device.device_id)},
		DIn:           int(c.d_in),
		DOut:          int(c.d_out),
		LayersIn:      int(c.layers_in),
		LayersOut:     int(c.layers_out),
		Latents:       int(c.n_latents),
		FirstLatent:   int(c.first_latent),
		ShardOf:       int(c.shard_of),
		K:             int(c.k),
		Prefixes:      numbers(c.prefixes, c.n_prefixes, func(n C.int64_t) int { return int(n) }),
		RowStateWidth: int(c.row_state_width),
		Bytes:         uint64(c.bytes),
		Format:        C.GoString(c.format),
		Notes:         C.GoString(c.notes),
		ModelName:     C.GoString(c.model_name),
		Hook: Hook{C.GoString(c.hook_point), C.GoString(c.hook_point_transformer_lens),
			C.GoString(c.hook_point_hugging_face), C.GoString(c.hook_point_ggml)},
		HookOut: Hook{C.GoString(c.hook_point_out), C.GoString(c.hook_point_out_transformer_lens),
			C.GoString(c.hook_point_out_hugging_face), C.GoString(c.hook_point_out_ggml)},
		ExcludedPositions:      numbers(c.excluded_positions, c.n_excluded_positions, func(p C.uint32_t) uint32 { return uint32(p) }),
		ContextSize:            int(c.context_size),
		PrependBOS:             Tri(c.prepend_bos),
		CenteredWritingWeights: Tri(c.centered_writing_weights),
		FoldedLayerNorm:        Tri(c.folded_layer_norm),
	}, nil
}

// A Weight names a model's tensor.
type Weight int32

const (
	WEnc      Weight = C.SAE_WEIGHT_W_ENC     // encoder directions, [latents, d_in]
	WDec      Weight = C.SAE_WEIGHT_W_DEC     // decoder directions, [latents, d_out]
	BEnc      Weight = C.SAE_WEIGHT_B_ENC     // encoder biases, [latents]
	BDec      Weight = C.SAE_WEIGHT_B_DEC     // the decoder's bias, [d_out]
	Threshold Weight = C.SAE_WEIGHT_THRESHOLD // JumpReLU's thresholds, [latents]
	WSkip     Weight = C.SAE_WEIGHT_W_SKIP    // the skip path, [d_out, d_in]
	WGLU      Weight = C.SAE_WEIGHT_W_GLU     // the second encoder of a GLU, [latents, d_in]
	BGLU      Weight = C.SAE_WEIGHT_B_GLU     // its biases, [latents]
	RMag      Weight = C.SAE_WEIGHT_R_MAG     // logarithms of the factors of a gated SAE's magnitudes, [latents]
	BGate     Weight = C.SAE_WEIGHT_B_GATE    // biases of a gated SAE's gates, [latents]
)

// Read copies rows of a matrix into out [rows, columns], or numbers of a vector into out [rows], in f32, f16 or bf16.
// first is the index of the first latent, or of the first row or number where there are no latents.
func (m *Model) Read(which Weight, first, rows int, out Tensor) error {
	c, err := m.share()
	if err != nil {
		return err
	}
	defer m.unshare()
	var s scope
	defer s.end()
	to := s.tensor("out", out)
	if s.err != nil {
		return s.err
	}
	var failure *C.sae_error
	C.sae_model_read((*C.sae_model)(c), C.int32_t(which), C.int64_t(first), C.int64_t(rows), to, &failure)
	return take(failure)
}

// FoldDecoderNorms makes a model whose decoder rows have norm 1, the norms moved into its encoder. Refused where other
// latents would win then.
func (m *Model) FoldDecoderNorms() (*Model, error) {
	return m.derived(func(c *C.sae_model, out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_fold_decoder_norms(c, out, err)
	})
}

// FoldActivationScale makes a model that takes x as this one takes x times scale, and gives its outputs on the scale of
// x.
func (m *Model) FoldActivationScale(scale float32) (*Model, error) {
	return m.derived(func(c *C.sae_model, out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_fold_activation_scale(c, C.float(scale), out, err)
	})
}

// WithK makes a model that keeps another number of latents per token.
func (m *Model) WithK(k int) (*Model, error) {
	return m.derived(func(c *C.sae_model, out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_with_k(c, C.int64_t(k), out, err)
	})
}

// Subset makes a model of these latents alone, numbered from 0 in that order. Where latents compete, they now compete
// among themselves.
func (m *Model) Subset(latents []int32) (*Model, error) {
	return m.derived(func(c *C.sae_model, out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_subset(c, (*C.int32_t)(unsafe.SliceData(latents)), C.size_t(len(latents)), out, err)
	})
}

// Prefix makes a model of the first latents: for Matryoshka SAEs one of [Info].Prefixes.
func (m *Model) Prefix(latents int) (*Model, error) {
	return m.derived(func(c *C.sae_model, out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_prefix(c, C.int64_t(latents), out, err)
	})
}

// WithThreshold makes a JumpReLU model of a TopK one, whose latents then do not compete: their one threshold is such
// that on the tokens of sample [T, d_in] k latents are active on average. pool may be nil: the calling thread alone.
func (m *Model) WithThreshold(sample Tensor, pool *Pool) (*Model, error) {
	var s scope
	defer s.end()
	tokens, threads := s.tensor("sample", sample), s.pool(pool)
	if s.err != nil {
		return nil, s.err
	}
	return m.derived(func(c *C.sae_model, out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_with_threshold(c, tokens, threads, out, err)
	})
}
