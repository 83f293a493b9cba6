package sae

// #include "shim.h"
import "C"

import (
	"cmp"
	"math"
	"time"
	"unsafe"
)

// A Buffer mixes what an engine computes into batches: it takes activations in any order and number, and gives batches
// drawn uniformly at random, without replacement, from all rows that it holds at that moment: at least half of what it
// can hold, until it is finished. Rows are refused, never dropped: those that are left out for a reason are counted.
// For any number of goroutines at once. What is given depends on the seed and the sequence of pushes and takes alone.
type Buffer struct{ handle }

// BufferFlags change what a buffer keeps.
type BufferFlags uint32

const (
	// Rows come with their document's number, and are given with it.
	BufferDocuments BufferFlags = C.SAE_BUFFER_DOCUMENTS
	// Rows that are not finite are held like others, instead of left out and counted.
	BufferKeepNotFinite BufferFlags = C.SAE_BUFFER_KEEP_NOT_FINITE
)

// BufferOptions say how a buffer is made. D must be set; zero is a good default of all others.
type BufferOptions struct {
	// Width of a vector of activations.
	D int
	// Layers of a row; 0: rows are vectors, and batches [T, d], not [T, layers, d].
	Layers int
	// The most bytes of memory that the buffer takes, all that it needs counted; 0: 1 GiB.
	MemoryBytes uint64
	// Size of the file that holds what does not fit into memory; 0: none.
	SpillBytes uint64
	// The folder of that file, which has no name and is gone when the buffer is, or the process.
	SpillFolder string
	// Of the order in which rows are given.
	Seed uint64
	// With BufferDocuments: documents of which rows must be held before any are given, unless the buffer is full; 0: 1.
	MinDocuments uint64
	// Rows whose norm exceeds this many times the running median of norms are left out: attention sinks. 0: none are.
	SinkMultiple float32
	// Rows whose norm exceeds this are left out; 0: none are.
	MaxNorm float32
	// The type in which rows are held; zero: f32.
	DType DType
	Flags BufferFlags
}

func (o *BufferOptions) c(s *scope) *C.sae_buffer_options {
	if o == nil {
		return nil
	}
	c := &allocate[C.sae_buffer_options](s, 1)[0]
	*c = C.sae_buffer_options{
		struct_size:   C.sizeof_sae_buffer_options,
		d:             C.int64_t(o.D),
		layers:        C.int64_t(o.Layers),
		memory_bytes:  C.uint64_t(o.MemoryBytes),
		spill_bytes:   C.uint64_t(o.SpillBytes),
		spill_folder:  s.text("spill folder", o.SpillFolder),
		seed:          C.uint64_t(o.Seed),
		min_documents: C.uint64_t(o.MinDocuments),
		sink_multiple: C.float(o.SinkMultiple),
		max_norm:      C.float(o.MaxNorm),
		dtype:         o.DType.c,
		flags:         C.uint32_t(o.Flags),
	}
	return c
}

// A BufferSize is what a buffer takes.
type BufferSize struct {
	// Rows that can be held. A batch has at most half as many.
	Capacity uint64
	// Bytes of memory and of the file.
	MemoryBytes, SpillBytes uint64
}

// BufferMemory tells what a buffer of these options will take; nothing is allocated to find out.
func BufferMemory(options BufferOptions) (BufferSize, error) {
	var s scope
	defer s.end()
	how := options.c(&s)
	if s.err != nil {
		return BufferSize{}, s.err
	}
	var failure *C.sae_error
	c := C.sae_buffer_size{struct_size: C.sizeof_sae_buffer_size}
	if C.sae_buffer_memory(how, &c, &failure); failure != nil {
		return BufferSize{}, take(failure)
	}
	return BufferSize{uint64(c.capacity), uint64(c.memory_bytes), uint64(c.spill_bytes)}, nil
}

// NewBuffer makes an empty buffer, which takes all its memory now.
func NewBuffer(options BufferOptions) (*Buffer, error) {
	var s scope
	defer s.end()
	how := options.c(&s)
	if s.err != nil {
		return nil, s.err
	}
	var c *C.sae_buffer
	var failure *C.sae_error
	C.sae_buffer_create(how, &c, &failure)
	return buffer(c, failure)
}

// RestoreBuffer makes a buffer that goes on where one was saved: the same pushes and takes give the same bits. What is
// set in options must agree with what was saved, except for MemoryBytes, SpillBytes and SpillFolder, which say anew
// where rows are held, if any of them is set; they may be nil.
func RestoreBuffer(path string, options *BufferOptions) (*Buffer, error) {
	var s scope
	defer s.end()
	name, how := s.path("path", path), options.c(&s)
	if s.err != nil {
		return nil, s.err
	}
	var c *C.sae_buffer
	var failure *C.sae_error
	C.sae_buffer_restore(name, how, &c, &failure)
	return buffer(c, failure)
}

func buffer(c *C.sae_buffer, failure *C.sae_error) (*Buffer, error) {
	if failure != nil {
		return nil, take(failure)
	}
	b := &Buffer{}
	b.own("buffer", unsafe.Pointer(c), func(c unsafe.Pointer) { C.sae_buffer_free((*C.sae_buffer)(c)) }, onHost)
	return b, nil
}

// Rows are what is to be mixed.
type Rows struct {
	// [T, d], or [T, layers, d]; f32, f16 or bf16, rounded to the buffer's type if that is another.
	X Tensor
	// Like X: X + Addend is held, formed in f32; absent: X.
	Addend Tensor
	// [T], i32: rows with 0 are left out; absent: all count.
	RowMask Tensor
	// The document of each of the T rows, if the buffer keeps documents.
	Documents []int64
	// Rows at the front that are passed over: those that an earlier call has taken.
	First int
	// X + Addend is rounded to X's type before it is held.
	RoundSum bool
}

// Forever is a wait without end.
const Forever time.Duration = math.MaxInt64

func milliseconds(wait time.Duration) C.int64_t {
	if wait == Forever {
		return C.SAE_WAIT_FOREVER
	}
	return C.int64_t(max(wait, 0) / time.Millisecond)
}

// Push takes in rows, and tells how many: all from First on, unless there is no room for them. Then it waits until
// there is, for wait, 0: not at all, or [Forever]; call again with First raised by what was taken. Rows that are left
// out count as taken. [ErrBadState] if the buffer is finished before any row is taken.
func (b *Buffer) Push(rows Rows, wait time.Duration) (taken int, err error) {
	if err := cmp.Or(rows.X.fault("x"), rows.Addend.fault("addend"), rows.RowMask.fault("row_mask")); err != nil {
		return 0, err
	}
	if rows.Documents != nil && len(rows.Documents) < rows.X.Rows() {
		return 0, failed(ErrInvalidTensor, "documents: there are %d, for %d rows; give one for each", len(rows.Documents), rows.X.Rows())
	}
	c, err := b.share()
	if err != nil {
		return 0, err
	}
	defer b.unshare()
	var flags C.uint32_t
	if rows.RoundSum {
		flags = C.SAE_RUN_ROUND_SUM
	}
	names := (*C.int64_t)(unsafe.Pointer(unsafe.SliceData(rows.Documents)))
	result := C.go_buffer_push((*C.sae_buffer)(c), rows.X.c, rows.Addend.c, rows.RowMask.c, names, C.int64_t(rows.First),
		flags, milliseconds(wait))
	return int(result.taken), take(result.error)
}

// Take gives T rows into out, [T, d] or [T, layers, d], of the buffer's type or f32, and their documents into
// documents, unless it is nil. taken is the number of rows: fewer than T only where a finished buffer is left with
// fewer; 0 if too few are held yet, even after wait (0: not waited for, or [Forever]). more is false once the buffer is
// finished and empty. If the spill file cannot be read ([ErrIO]), all rows stay in the buffer, but what is in out and
// documents is not defined.
func (b *Buffer) Take(out Tensor, documents []int64, wait time.Duration) (taken int, more bool, err error) {
	if err := out.fault("out"); err != nil {
		return 0, false, err
	}
	if documents != nil && len(documents) < out.Rows() {
		return 0, false, failed(ErrInvalidTensor, "documents: there is room for %d, but out has %d rows", len(documents), out.Rows())
	}
	c, err := b.share()
	if err != nil {
		return 0, false, err
	}
	defer b.unshare()
	names := (*C.int64_t)(unsafe.Pointer(unsafe.SliceData(documents)))
	result := C.go_buffer_take((*C.sae_buffer)(c), out.c, names, milliseconds(wait))
	if result.error != nil {
		return 0, false, take(result.error)
	}
	if result.taken == C.SAE_BUFFER_END {
		return 0, false, nil
	}
	return int(result.taken), true, nil
}

// Finish takes in no more rows, and ends all waiting: those who push are told how many rows were taken, those who take
// get what is left, to the last row.
func (b *Buffer) Finish() error {
	c, err := b.share()
	if err != nil {
		return err
	}
	defer b.unshare()
	var failure *C.sae_error
	C.sae_buffer_close((*C.sae_buffer)(c), &failure)
	return take(failure)
}

// Close finishes the buffer, so that nobody waits for it any more, and frees it with what it still holds.
func (b *Buffer) Close() error {
	b.Finish()
	return b.handle.Close()
}

// A BufferState is how a buffer fares. At every moment Pushed = Masked + NotFinite + Sinks + Taken + Held.
type BufferState struct {
	// Rows taken from those who push, whatever became of them.
	Pushed uint64
	// Rows left out by masks, because they were not finite, and because of their norm.
	Masked, NotFinite, Sinks uint64
	// Rows given, rows held, and rows that can be held.
	Taken, Held, Capacity uint64
	// Batches given because the buffer was full, from fewer documents than were asked for.
	Unmixed uint64
	// The running median of norms; 0 where sinks are not judged by it, or none is known.
	MedianNorm float32
	// Whether the buffer takes no more rows.
	Finished bool
}

// State tells how the buffer fares.
func (b *Buffer) State() (BufferState, error) {
	buffer, err := b.share()
	if err != nil {
		return BufferState{}, err
	}
	defer b.unshare()
	var failure *C.sae_error
	c := C.sae_buffer_state{struct_size: C.sizeof_sae_buffer_state}
	if C.sae_buffer_stats((*C.sae_buffer)(buffer), &c, &failure); failure != nil {
		return BufferState{}, take(failure)
	}
	return BufferState{
		Pushed:     uint64(c.pushed),
		Masked:     uint64(c.masked),
		NotFinite:  uint64(c.not_finite),
		Sinks:      uint64(c.sinks),
		Taken:      uint64(c.taken),
		Held:       uint64(c.held),
		Capacity:   uint64(c.capacity),
		Unmixed:    uint64(c.unmixed),
		MedianNorm: float32(c.median_norm),
		Finished:   c.closed != 0,
	}, nil
}

// Save writes all that decides what comes next, the rows themselves included, into a file that appears whole or not at
// all. Other calls wait while it is written, but not until it is on the disk.
func (b *Buffer) Save(path string) error {
	c, err := b.share()
	if err != nil {
		return err
	}
	defer b.unshare()
	var s scope
	defer s.end()
	name := s.path("path", path)
	if s.err != nil {
		return s.err
	}
	var failure *C.sae_error
	C.sae_buffer_save((*C.sae_buffer)(c), name, &failure)
	return take(failure)
}
