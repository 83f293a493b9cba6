package sae

// #include "shim.h"
import "C"

import "fmt"

// A Status says what kind of failure an error is. It is an error itself, for errors.Is to compare with.
type Status int32

const (
	// An option, flag, count or pointer is not acceptable.
	ErrInvalidArgument Status = C.SAE_ERROR_INVALID_ARGUMENT
	// A tensor's data, dtype, shape, strides, device or overlap is not acceptable.
	ErrInvalidTensor Status = C.SAE_ERROR_INVALID_TENSOR
	// What was asked for is understood, but this build, model or device does not do it.
	ErrUnsupported Status = C.SAE_ERROR_UNSUPPORTED
	// A file could not be opened, read or written.
	ErrIO Status = C.SAE_ERROR_IO
	// A file was read, but its content is not what its format promises.
	ErrFormat Status = C.SAE_ERROR_FORMAT
	// Memory could not be had.
	ErrOutOfMemory Status = C.SAE_ERROR_OUT_OF_MEMORY
	// The device asked for is not there.
	ErrNoDevice Status = C.SAE_ERROR_NO_DEVICE
	// The device reported a fault, in this call or an earlier one.
	ErrDeviceFault Status = C.SAE_ERROR_DEVICE_FAULT
	// A number that must be finite is not: a weight, a statistic, a loss.
	ErrNotFinite Status = C.SAE_ERROR_NOT_FINITE
	// The call does not fit the state the object is in: it is closed, or another goroutine's call is under way.
	ErrBadState Status = C.SAE_ERROR_BAD_STATE
	// A fault of the library itself; please report it.
	ErrInternal Status = C.SAE_ERROR_INTERNAL
	// Other processes of the run could not be reached.
	ErrCollective Status = C.SAE_ERROR_COLLECTIVE
)

// Error is the name of the status, such as "SAE_ERROR_IO".
func (s Status) Error() string { return C.GoString(C.sae_status_name(C.sae_status(s))) }

// An Error is a failed call's status, and a message that names the thing, what was expected and what was found.
type Error struct {
	Status  Status
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is tells whether target is this error's status.
func (e *Error) Is(target error) bool { return target == e.Status }

func failed(status Status, format string, args ...any) error {
	return &Error{status, fmt.Sprintf(format, args...)}
}

// Takes over an error of the library's; nil is none.
func take(c *C.sae_error) error {
	if c == nil {
		return nil
	}
	defer C.sae_error_free(c)
	return &Error{Status(C.sae_error_status(c)), C.GoString(C.sae_error_message(c))}
}
