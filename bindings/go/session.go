package sae

// #include "shim.h"
import "C"

import (
	"cmp"
	"unsafe"
)

// A Session is one stream of work over one model: working memory and the hot calls, which allocate nothing. One
// goroutine at a time may use it; a call that comes while another runs is refused with [ErrBadState]. Sessions are
// independent of each other.
//
// T is a call's number of tokens, from 0 to the session's most.
type Session struct {
	handle
	parts []C.go_features // shapes of what is merged, without pointers
	edits []Edit
}

// SessionFlags say what a session holds.
type SessionFlags uint32

const (
	// The caller brings working memory with each call; the session keeps none.
	HostWorkspace SessionFlags = C.SAE_SESSION_HOST_WORKSPACE
	// No copy of W_enc as bytes, which makes encoding faster, with the same results.
	NoScreen SessionFlags = C.SAE_SESSION_NO_SCREEN
	// Such a copy even where W_enc is a mapped file's, or where it is slower.
	Screen SessionFlags = C.SAE_SESSION_SCREEN
)

// SessionOptions say what a session is made for. Zero values, and nil, are the defaults.
type SessionOptions struct {
	// The most tokens per call; 0: 512. More are an error, not a silent split.
	MaxTokens int
	// The most slots per token in features; 0: k for TopK, else 1024, at most the model's latents.
	MaxWidth int
	// How many lists of edits there can be; 0: 1.
	Slots int
	// How many edits a list can have; 0: 16.
	EditsPerSlot int
	// Who computes on the CPU; nil: the calling thread alone.
	Pool  *Pool
	Flags SessionFlags
	// For every call.
	RunFlags RunFlags
	// The instruction set, one of [Kernels]; "": the fastest, or what the environment variable SAE_KERNELS names.
	Kernels string
}

func (o *SessionOptions) c(s *scope) *C.sae_session_options {
	if o == nil {
		o = &SessionOptions{}
	}
	c := &allocate[C.sae_session_options](s, 1)[0]
	*c = C.sae_session_options{
		struct_size:    C.sizeof_sae_session_options,
		max_tokens:     C.int64_t(o.MaxTokens),
		max_width:      C.int64_t(o.MaxWidth),
		slots:          C.int64_t(o.Slots),
		edits_per_slot: C.int64_t(o.EditsPerSlot),
		pool:           s.pool(o.Pool),
		flags:          C.uint32_t(o.Flags),
		run_flags:      C.uint32_t(o.RunFlags),
		kernels:        s.text("kernels", o.Kernels),
	}
	return c
}

// NewSession makes a session, with all the memory its calls will need. options may be nil.
func (m *Model) NewSession(options *SessionOptions) (*Session, error) {
	var s scope
	defer s.end()
	model, how := (*C.sae_model)(s.share(&m.handle)), options.c(&s)
	if s.err != nil {
		return nil, s.err
	}
	var c *C.sae_session
	var failure *C.sae_error
	if C.sae_session_create(model, how, &c, &failure); failure != nil {
		return nil, take(failure)
	}
	session := &Session{}
	session.own("session", unsafe.Pointer(c), func(c unsafe.Pointer) { C.sae_session_free((*C.sae_session)(c)) }, m.where)
	return session, nil
}

// SessionMemory tells what such a session would need; a copy of W_enc that sessions of the model share is counted for
// each.
func (m *Model) SessionMemory(options *SessionOptions) (Memory, error) {
	var s scope
	defer s.end()
	model, how := (*C.sae_model)(s.share(&m.handle)), options.c(&s)
	if s.err != nil {
		return Memory{}, s.err
	}
	return measured(func(memory *C.sae_memory, err **C.sae_error) C.sae_status {
		return C.sae_session_memory(model, how, memory, err)
	})
}

// RunFlags say how a call runs.
type RunFlags uint32

const (
	// Allow scores that are repeatable on one device but not bit for bit the same on all. The CPU's are the same
	// anyway.
	Fast RunFlags = C.SAE_RUN_FAST
	// List features by index instead of strongest first.
	OrderIndex RunFlags = C.SAE_RUN_ORDER_INDEX
	// Round x + addend to x's type, as engines do that write the sum back before they read it.
	RoundSum RunFlags = C.SAE_RUN_ROUND_SUM
)

// A StreamKind says where a call on a GPU runs.
type StreamKind int32

const (
	// The session's own stream; [Session.Wait] waits for what is on it.
	SessionStream StreamKind = C.SAE_STREAM_SESSION
	// The host's, in [Run].Stream, of which nil is the default one.
	HostStream StreamKind = C.SAE_STREAM_HOST
	// The session's own stream, and the call returns when the work is done. On the CPU, calls always do.
	Synchronous StreamKind = C.SAE_STREAM_SYNCHRONOUS
)

// A Run is how one call runs. The zero value, or none: as the session was made.
type Run struct {
	// x + Addend is meant instead of x, formed in f32; for calls that take activations to encode or to train on.
	Addend Tensor
	// Added to the session's.
	Flags      RunFlags
	StreamKind StreamKind
	// The host's CUDA stream, with HostStream.
	Stream unsafe.Pointer
	// Working memory for this call, aligned to 64 bytes, instead of the session's; on a GPU, of its memory and aligned
	// to 256 bytes.
	Workspace unsafe.Pointer
	// Its bytes; [Model.SessionMemory] says how many are needed.
	WorkspaceSize int
}

func (r *Run) c() C.sae_run {
	return C.sae_run{
		struct_size:    C.sizeof_sae_run,
		flags:          C.uint32_t(r.Flags),
		stream_kind:    C.int32_t(r.StreamKind),
		stream:         r.Stream,
		workspace:      r.Workspace,
		workspace_size: C.size_t(r.WorkspaceSize),
	}
}

// The one way to run that a call was given, if any.
func only(run []Run) (Run, error) {
	switch len(run) {
	case 0:
		return Run{}, nil
	case 1:
		return run[0], run[0].Addend.fault("addend")
	}
	return Run{}, failed(ErrInvalidArgument, "run: there are %d, a call takes one", len(run))
}

func onlyWithout(run []Run) (Run, error) {
	how, err := only(run)
	if err == nil && !how.Addend.Absent() {
		err = failed(ErrInvalidArgument, "addend: this call takes none, leave it out of run")
	}
	return how, err
}

// Encode writes the sparse features of each token of x [T, d_in]. A token that is not finite gets none and count -1;
// the call succeeds.
func (s *Session) Encode(x Tensor, out *Features, run ...Run) error {
	how, err := only(run)
	if err = cmp.Or(err, x.fault("x"), out.fault("out")); err != nil {
		return err
	}
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	return take(C.go_encode((*C.sae_session)(c), how.c(), x.c, how.Addend.c, out.c()))
}

// EncodeSelected writes the activations of the latents ids [m] (i32) alone into out [T, m]. With TopK, a latent that is
// not among a token's k largest has activation 0. An id out of range counts as inactive; a token that is not finite
// gives NaN.
func (s *Session) EncodeSelected(x, ids, out Tensor, run ...Run) error {
	how, err := only(run)
	if err = cmp.Or(err, x.fault("x"), ids.fault("ids"), out.fault("out")); err != nil {
		return err
	}
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	return take(C.go_encode_selected((*C.sae_session)(c), how.c(), x.c, how.Addend.c, ids.c, out.c))
}

// Dense says what [Session.EncodeDense] writes.
type Dense int32

const (
	// 0 where a latent is not active.
	Activations    Dense = C.SAE_DENSE_ACTIVATIONS
	PreActivations Dense = C.SAE_DENSE_PRE_ACTIVATIONS
)

// EncodeDense writes all activations or pre-activations into z [T, latents]. A token that is not finite gives NaN.
func (s *Session) EncodeDense(x Tensor, what Dense, z Tensor, run ...Run) error {
	how, err := onlyWithout(run)
	if err = cmp.Or(err, x.fault("x"), z.fault("z")); err != nil {
		return err
	}
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	return take(C.go_encode_dense((*C.sae_session)(c), how.c(), x.c, C.int32_t(what), z.c))
}

// Decode writes activation vectors from features into xHat [T, d_out]. x is the raw input, which models with a skip
// path need; for others it may be absent. A token with count -1 gives NaN; an index out of range is left out and
// counted, see [Session.Status].
func (s *Session) Decode(features *Features, x, xHat Tensor, run ...Run) error {
	how, err := onlyWithout(run)
	if err = cmp.Or(err, features.fault("features"), x.fault("x"), xHat.fault("x_hat")); err != nil {
		return err
	}
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	return take(C.go_decode((*C.sae_session)(c), how.c(), features.c(), x.c, xHat.c))
}

// Reconstruct encodes and decodes at once, from all active latents, into xHat [T, d_out], which may be x itself. out
// gets as many features as fit it; nil: they are not wanted.
func (s *Session) Reconstruct(x Tensor, out *Features, xHat Tensor, run ...Run) error {
	how, err := only(run)
	if err = cmp.Or(err, x.fault("x"), out.fault("out"), xHat.fault("x_hat")); err != nil {
		return err
	}
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	return take(C.go_reconstruct((*C.sae_session)(c), how.c(), x.c, how.Addend.c, given(out), out.c(), xHat.c))
}

func given(f *Features) C.int {
	if f == nil {
		return 0
	}
	return 1
}

// Merge writes the features of latent shards of a model, under global indices, as those of the whole. There are at most
// 64 parts.
func (s *Session) Merge(parts []*Features, out *Features, run ...Run) error {
	how, err := onlyWithout(run)
	if err = cmp.Or(err, out.fault("out")); err != nil {
		return err
	}
	for i, part := range parts {
		if part == nil {
			return failed(ErrInvalidArgument, "parts: number %d is nil", i)
		}
		if err := part.fault("part"); err != nil {
			return err
		}
	}
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()

	if s.parts == nil {
		s.parts = make([]C.go_features, C.SAE_MAX_PARTS)
	}
	var listed, rows C.go_parts
	for i, part := range parts[:min(len(parts), C.SAE_MAX_PARTS)] {
		listed.data[2*i], listed.data[2*i+1] = part.Values.c.data, part.Indices.c.data
		rows.data[2*i], rows.data[2*i+1] = part.Counts.c.data, part.RowState.c.data
		shapes := &s.parts[i]
		*shapes = part.c()
		shapes.values.data, shapes.indices.data, shapes.counts.data, shapes.row_state.data = nil, nil, nil, nil
	}
	return take(C.go_merge((*C.sae_session)(c), how.c(), listed, rows, unsafe.SliceData(s.parts), C.size_t(len(parts)), out.c()))
}

// Status tells of faults of the device, and of indices and slots out of range that calls took for -1 since the session
// was made. It never waits. nil: none.
func (s *Session) Status() error {
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	var failure *C.sae_error
	C.sae_session_status((*C.sae_session)(c), &failure)
	return take(failure)
}

// Wait waits until everything that the session was asked for is done, on whatever stream. On the CPU calls are done
// when they return.
func (s *Session) Wait() error {
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	var failure *C.sae_error
	C.sae_session_wait((*C.sae_session)(c), &failure)
	return take(failure)
}

// Kernels is the name of the instruction set that the session uses, if it computes on the CPU; "" once it is closed.
func (s *Session) Kernels() string {
	c, err := s.share()
	if err != nil {
		return ""
	}
	defer s.unshare()
	return C.GoString(C.sae_session_kernels((*C.sae_session)(c)))
}
