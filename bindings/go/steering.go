package sae

// #include "shim.h"
import "C"

import (
	"cmp"
	"unsafe"
)

// An EditOp is what an edit does to a latent's activation.
type EditOp int32

const (
	OpAdd    EditOp = C.SAE_EDIT_ADD    // add Strength, active or not
	OpSet    EditOp = C.SAE_EDIT_SET    // make it Strength
	OpScale  EditOp = C.SAE_EDIT_SCALE  // multiply it by Strength
	OpAblate EditOp = C.SAE_EDIT_ABLATE // make it 0
)

// EditFlags narrow an edit.
type EditFlags uint32

// Leave tokens alone on which the latent is not active.
const OnlyActive EditFlags = C.SAE_EDIT_ONLY_ACTIVE

// An Edit is one change to one latent. Its layout is the library's.
type Edit struct {
	// Index of the latent.
	Latent int32
	Op     EditOp
	// By how much, in units of the latent's activation.
	Strength float32
	// The change of the activation is clamped to ±Limit; 0: no limit.
	Limit float32
	Flags EditFlags
	_     [3]uint32
}

// Add adds strength to the activation of a latent.
func Add(latent int32, strength float32) Edit {
	return Edit{Latent: latent, Op: OpAdd, Strength: strength}
}

// Set makes the activation of a latent strength.
func Set(latent int32, strength float32) Edit {
	return Edit{Latent: latent, Op: OpSet, Strength: strength}
}

// Scale multiplies the activation of a latent by strength.
func Scale(latent int32, strength float32) Edit {
	return Edit{Latent: latent, Op: OpScale, Strength: strength}
}

// Ablate makes the activation of a latent 0.
func Ablate(latent int32) Edit { return Edit{Latent: latent, Op: OpAblate} }

// SetEdits replaces the list of edits in a slot; none: the slot steers nothing. The edits are copied. A list may not
// name a latent twice. On failure the old list stays, but for [ErrDeviceFault]: then it is the old one or empty.
func (s *Session) SetEdits(slot int, edits ...Edit) error {
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	if int(C.int32_t(slot)) != slot {
		return failed(ErrInvalidArgument, "slot: %d is out of range", slot)
	}
	s.edits = append(s.edits[:0], edits...) // so that the caller's list can stay on the stack
	list := (*C.sae_edit)(unsafe.Pointer(unsafe.SliceData(s.edits)))
	return take(C.go_set_edits((*C.sae_session)(c), C.int32_t(slot), list, C.size_t(len(edits))))
}

// A Steering is whom to steer, and where. nil or all zero: every token by slot 0, in place.
type Steering struct {
	// [T], i32: each token's slot; -1: leave it alone. Absent: slot 0 for all.
	RowSlot Tensor
	// Features of these tokens, if they are already encoded; nil: what the edits need is computed.
	Known *Features
	// [T, d_out]: what is edited; absent: x. For a transcoder, x is read at one place and Y written at another.
	Y Tensor
	// [T, d_out], of Y's type: where the result goes; absent: Y, in place.
	Out Tensor
}

// Steer changes activations x [T, d_in] by the edits of their slots. The part of them that the model does not
// reconstruct is kept. Tokens left alone keep their bits, as do tokens that are not finite. steering may be nil.
func (s *Session) Steer(x Tensor, steering *Steering, run ...Run) error {
	how, err := only(run)
	var whom Steering
	if steering != nil {
		whom = *steering
	}
	if err = cmp.Or(err, x.fault("x"), whom.RowSlot.fault("row_slot"), whom.Known.fault("known"), whom.Y.fault("y"),
		whom.Out.fault("out")); err != nil {
		return err
	}
	c, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	return take(C.go_steer((*C.sae_session)(c), how.c(), x.c, how.Addend.c, whom.RowSlot.c, given(whom.Known),
		whom.Known.c(), whom.Y.c, whom.Out.c))
}
