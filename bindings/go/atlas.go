package sae

// #include "shim.h"
import "C"

import "unsafe"

// AtlasOptions say what an atlas keeps. Latents must be set; of all others zero is a good default, and where 0 would mean
// something else, -1 is none.
type AtlasOptions struct {
	Latents      int    // how many
	FirstLatent  int    // the index of the first of them, where features come from a shard
	Seed         uint64 // of what is drawn
	Top          int    // windows kept of each latent around its highest peaks: 20
	PerInterval  int    // windows drawn from each of 10 equal intervals of its activations: 5
	Random       int    // windows drawn from all tokens on which it is active: 10
	TopBefore    int    // tokens before the peak in top windows: 47
	TopAfter     int    // and after it: 16
	DrawnBefore  int    // tokens before the activation in drawn windows: 23
	DrawnAfter   int    // and after it: 8
	MaxWidth     int    // the most slots per token that features come with: 512
	MaxDocuments int    // documents whose tokens may come by turns: 64
}

func (o *AtlasOptions) c() C.sae_atlas_options {
	return C.sae_atlas_options{
		struct_size: C.sizeof_sae_atlas_options,
		n_latents:   C.int64_t(o.Latents), first_latent: C.int64_t(o.FirstLatent), seed: C.uint64_t(o.Seed),
		top: C.int32_t(o.Top), per_interval: C.int32_t(o.PerInterval), random: C.int32_t(o.Random),
		top_before: C.int32_t(o.TopBefore), top_after: C.int32_t(o.TopAfter),
		drawn_before: C.int32_t(o.DrawnBefore), drawn_after: C.int32_t(o.DrawnAfter),
		max_width: C.int32_t(o.MaxWidth), max_documents: C.int32_t(o.MaxDocuments),
	}
}

// Memory tells the most bytes that an atlas of these options ever takes.
func (o AtlasOptions) Memory() (bytes uint64, err error) {
	options := o.c()
	var most C.uint64_t
	var failure *C.sae_error
	C.sae_atlas_memory(&options, &most, &failure)
	return uint64(most), take(failure)
}

// An Atlas watches features flow by, and keeps of each latent its counters, a histogram, and the windows of text where it is
// active. Any number of goroutines may use it.
type Atlas struct{ handle }

// NewAtlas makes an atlas that has seen nothing yet.
func NewAtlas(options AtlasOptions) (*Atlas, error) {
	c := options.c()
	var made *C.sae_atlas
	var failure *C.sae_error
	if C.sae_atlas_create(&c, &made, &failure); failure != nil {
		return nil, take(failure)
	}
	return atlas(made), nil
}

// LoadAtlas loads an atlas that was saved. It is refused if it takes more than maxBytes of memory, 0: 8 GiB.
func LoadAtlas(path string, maxBytes uint64) (*Atlas, error) {
	var s scope
	defer s.end()
	name := s.path("path", path)
	if s.err != nil {
		return nil, s.err
	}
	var made *C.sae_atlas
	var failure *C.sae_error
	if C.sae_atlas_load(name, C.uint64_t(maxBytes), &made, &failure); failure != nil {
		return nil, take(failure)
	}
	return atlas(made), nil
}

func atlas(c *C.sae_atlas) *Atlas {
	a := &Atlas{}
	a.own("atlas", unsafe.Pointer(c), func(c unsafe.Pointer) { C.sae_atlas_free((*C.sae_atlas)(c)) }, onHost)
	return a
}

// Observe has the atlas watch tokens, whose features are in host memory: their ids, and for each its document (nil: all are of
// document 0) and position in it (nil: each follows the last token of its document). If the call fails, none was seen.
func (a *Atlas) Observe(features *Features, tokens []int32, documents, positions []int64) error {
	if err := features.fault("features"); err != nil {
		return err
	}
	for _, numbers := range []struct {
		name  string
		given []int64
	}{{"documents", documents}, {"positions", positions}} {
		if numbers.given != nil && len(numbers.given) != len(tokens) {
			return failed(ErrInvalidTensor, "%s: there are %d, for %d tokens; give one for each", numbers.name, len(numbers.given), len(tokens))
		}
	}
	c, err := a.share()
	if err != nil {
		return err
	}
	defer a.unshare()
	ids := Vector(tokens)
	return take(C.go_atlas_observe((*C.sae_atlas)(c), features.c(), ids.c,
		(*C.int64_t)(unsafe.Pointer(unsafe.SliceData(documents))), (*C.int64_t)(unsafe.Pointer(unsafe.SliceData(positions)))))
}

// Finish ends all documents: the last tokens of open ones are counted too.
func (a *Atlas) Finish() error {
	c, err := a.share()
	if err != nil {
		return err
	}
	defer a.unshare()
	var failure *C.sae_error
	C.sae_atlas_finish((*C.sae_atlas)(c), &failure)
	return take(failure)
}

// Merge adds what other has seen, which stays as it is. No document may be in both.
func (a *Atlas) Merge(other *Atlas) error {
	var s scope
	defer s.end()
	c, from := s.share(&a.handle), s.share(&other.handle)
	if s.err != nil {
		return s.err
	}
	var failure *C.sae_error
	C.sae_atlas_merge((*C.sae_atlas)(c), (*C.sae_atlas)(from), &failure)
	return take(failure)
}

// Save saves the atlas into a file that appears whole or not at all. All documents are ended before.
func (a *Atlas) Save(path string) error {
	var s scope
	defer s.end()
	c, name := s.share(&a.handle), s.path("path", path)
	if s.err != nil {
		return s.err
	}
	var failure *C.sae_error
	C.sae_atlas_save((*C.sae_atlas)(c), name, &failure)
	return take(failure)
}

// AtlasInfo is what an atlas is, and has seen.
type AtlasInfo struct {
	Latents, FirstLatent int
	Tokens               uint64 // seen
	NotFinite            uint64 // of them, whose features were not counted, because they were not finite
	Cut                  uint64 // on which more latents were active than were listed
	Stretches            uint64 // of consecutive tokens
	MaxWindow            int    // the most tokens that a window has
}

// Info tells what the atlas is, and has seen.
func (a *Atlas) Info() (AtlasInfo, error) {
	c, err := a.share()
	if err != nil {
		return AtlasInfo{}, err
	}
	defer a.unshare()
	info := C.sae_atlas_info{struct_size: C.sizeof_sae_atlas_info}
	var failure *C.sae_error
	C.sae_atlas_get((*C.sae_atlas)(c), &info, &failure)
	return AtlasInfo{
		Latents: int(info.n_latents), FirstLatent: int(info.first_latent), Tokens: uint64(info.tokens), NotFinite: uint64(info.not_finite),
		Cut: uint64(info.cut), Stretches: uint64(info.stretches), MaxWindow: int(info.max_window),
	}, take(failure)
}

// A Bin of a histogram: how many activations have a magnitude from From to To.
type Bin struct {
	From, To float32
	Count    uint64
}

// LatentSummary is the numbers of a latent.
type LatentSummary struct {
	Count    uint64     // tokens on which it is active
	Sums     [4]float64 // of its activation's powers, from the first on
	Max, Min float32
	Windows  [3]int // how many there are, by kind
	Bins     []Bin
	Below    uint64 // activations smaller than the lowest bin that could be kept
}

// Kinds of windows.
const (
	WindowsTop       = C.SAE_WINDOWS_TOP
	WindowsIntervals = C.SAE_WINDOWS_INTERVALS
	WindowsRandom    = C.SAE_WINDOWS_RANDOM
)

// Latent tells the numbers of a latent.
func (a *Atlas) Latent(latent int) (LatentSummary, error) {
	c, err := a.share()
	if err != nil {
		return LatentSummary{}, err
	}
	defer a.unshare()
	f := C.sae_atlas_feature{struct_size: C.sizeof_sae_atlas_feature}
	var failure *C.sae_error
	if C.sae_atlas_read((*C.sae_atlas)(c), C.int64_t(latent), &f, &failure); failure != nil {
		return LatentSummary{}, take(failure)
	}
	made := LatentSummary{
		Count: uint64(f.count), Max: float32(f.max), Min: float32(f.min), Below: uint64(f.below),
		Windows: [3]int{WindowsTop: int(f.n_top), WindowsIntervals: int(f.n_intervals), WindowsRandom: int(f.n_random)},
	}
	for i, sum := range f.sums {
		made.Sums[i] = float64(sum)
	}
	for i := range int(f.n_bins) {
		made.Bins = append(made.Bins, Bin{float32(f.bin_from[i]), float32(f.bin_to[i]), uint64(f.bin_count[i])})
	}
	return made, nil
}

// A Window is the tokens around an activation of a latent.
type Window struct {
	Document, Position int64 // where the activation is
	Value              float32
	At                 int // which of the window's tokens it is on
	Interval           int // in which of 10 equal parts of the latent's range it lies
	Tokens             []int32
	Activations        []float32 // the latent's on them, as bf16 holds them
}

// Window gives a window of a latent, the index-th of its kind.
func (a *Atlas) Window(latent, kind, index int) (Window, error) {
	info, err := a.Info()
	if err != nil {
		return Window{}, err
	}
	c, err := a.share()
	if err != nil {
		return Window{}, err
	}
	defer a.unshare()
	tokens, activations := make([]int32, info.MaxWindow), make([]float32, info.MaxWindow)
	w := C.sae_atlas_window{struct_size: C.sizeof_sae_atlas_window}
	var failure *C.sae_error
	C.sae_atlas_read_window((*C.sae_atlas)(c), C.int64_t(latent), C.int32_t(kind), C.int64_t(index), &w,
		(*C.int32_t)(unsafe.Pointer(unsafe.SliceData(tokens))), (*C.float)(unsafe.Pointer(unsafe.SliceData(activations))), &failure)
	if failure != nil {
		return Window{}, take(failure)
	}
	return Window{
		Document: int64(w.document), Position: int64(w.position), Value: float32(w.value), At: int(w.at), Interval: int(w.interval),
		Tokens: tokens[:w.length], Activations: activations[:w.length],
	}, nil
}
