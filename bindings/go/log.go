package sae

// #include "shim.h"
import "C"

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"unsafe"
)

// A LogLevel says how much a line of the log matters.
type LogLevel int32

const (
	// Something failed where no call could report it.
	LogError LogLevel = C.SAE_LOG_ERROR
	// Something was assumed that may be wrong, such as what a file does not say.
	LogWarning LogLevel = C.SAE_LOG_WARNING
	// Something was done: a model loaded, a checkpoint saved.
	LogInfo LogLevel = C.SAE_LOG_INFO
)

func (l LogLevel) String() string {
	switch l {
	case LogError:
		return "error"
	case LogWarning:
		return "warning"
	case LogInfo:
		return "info"
	}
	return fmt.Sprintf("level %d", int32(l))
}

var logger atomic.Pointer[func(LogLevel, string)]

// SetLog has everything up to level told to log, for the whole process and for good: a second call is refused with
// [ErrBadState]. log is called by the goroutine whose call has something to say, and may call the library, but must not
// close what that call uses, nor panic, which ends the process.
func SetLog(level LogLevel, log func(level LogLevel, message string)) error {
	if log == nil {
		return failed(ErrInvalidArgument, "log: it is nil, a function is needed")
	}
	if !logger.CompareAndSwap(nil, &log) {
		return failed(ErrBadState, "log: it was set before, and can be set once")
	}
	var failure *C.sae_error
	if C.go_log_set(C.int32_t(level), &failure); failure != nil {
		logger.CompareAndSwap(&log, nil)
	}
	return take(failure)
}

//export saeGoLog
func saeGoLog(level C.int32_t, message *C.char, length C.size_t, _ unsafe.Pointer) {
	defer fatal("the log's function")
	if log := logger.Load(); log != nil {
		(*log)(LogLevel(level), C.GoStringN(message, C.int(length)))
	}
}

// Ends the process if a callback panics: a panic must not unwind through the library's frames.
func fatal(what string) {
	if reason := recover(); reason != nil {
		fmt.Fprintf(os.Stderr, "sae: %s panicked: %v\n%s", what, reason, debug.Stack())
		os.Exit(2)
	}
}
