package sae

// #include "shim.h"
import "C"

import "unsafe"

// A Report is what the doctor says of a model and a sample of activations.
type Report struct{ handle }

// DoctorOptions say how to examine. Zero values, and nil, are the defaults.
type DoctorOptions struct {
	// [T, d_out]: what the output is compared with. Transcoders need it; absent: x itself.
	Target Tensor
	// [T], i32: each row's position in its context, -1 if unknown; absent: none is known, and BOS can hardly be
	// checked.
	Positions Tensor
	// A report of activations known to be good, to compare with; nil: the reference in the model's convention, if any.
	Baseline *Report
	// Who computes; nil: the calling thread alone.
	Pool *Pool
	// The most rows that are measured, spread over the sample; 0: 16,384.
	MaxRows int
}

// Diagnose examines whether activations x [T, d_in] are what a model expects, and names the likely fault if not. Some
// thousand rows, of many contexts, are a good sample. That they do not fit is no failure of the call: the report says
// so. options may be nil.
func Diagnose(model *Model, x Tensor, options *DoctorOptions) (*Report, error) {
	if options == nil {
		options = &DoctorOptions{}
	}
	var s scope
	defer s.end()
	patient, sample := (*C.sae_model)(s.share(&model.handle)), s.tensor("x", x)
	how := C.sae_doctor_options{
		struct_size: C.sizeof_sae_doctor_options,
		target:      s.tensor("target", options.Target),
		positions:   s.tensor("positions", options.Positions),
		pool:        s.pool(options.Pool),
		max_rows:    C.int64_t(options.MaxRows),
	}
	if options.Baseline != nil {
		how.baseline = (*C.sae_report)(s.share(&options.Baseline.handle))
	}
	if s.err != nil {
		return nil, s.err
	}
	var c *C.sae_report
	var failure *C.sae_error
	if C.sae_doctor(patient, sample, &how, &c, &failure); failure != nil {
		return nil, take(failure)
	}
	report := &Report{}
	report.own("report", unsafe.Pointer(c), func(c unsafe.Pointer) { C.sae_report_free((*C.sae_report)(c)) }, onHost)
	return report, nil
}

// A Verdict sums a report up.
type Verdict int32

const (
	Fits       Verdict = C.SAE_VERDICT_FITS        // nothing speaks against it
	Doubtful   Verdict = C.SAE_VERDICT_DOUBTFUL    // something is off; features may still mean what they should
	Misfit     Verdict = C.SAE_VERDICT_MISFIT      // the features mean nothing
	CannotTell Verdict = C.SAE_VERDICT_CANNOT_TELL // the sample is too small, or says nothing
)

// A ReportInfo is the numbers of a report.
type ReportInfo struct {
	Verdict  Verdict
	Findings int
	// Rows of the sample.
	RowsGiven int
	// Those that were measured.
	RowsMeasured int
	// Left aside: not finite; at positions that the model's convention leaves out; of 8 times the median norm or more.
	RowsNotFinite, RowsExcluded, RowsLarge int
	// Latents that were active on no row.
	Dead int
	// Fraction of variance unexplained.
	FVU float64
	// Active latents per row.
	L0 float64
	// The share of the error that is the same in every row.
	Bias float64
	// Median norm of the rows, and the distance of the norms' quartiles relative to it.
	Norm, NormSpread float64
	// FVU that was expected; 0: unknown.
	ReferenceFVU float64
}

// Info is the report's numbers.
func (r *Report) Info() (ReportInfo, error) {
	report, err := r.share()
	if err != nil {
		return ReportInfo{}, err
	}
	defer r.unshare()
	var failure *C.sae_error
	c := C.sae_report_info{struct_size: C.sizeof_sae_report_info}
	if C.sae_report_get((*C.sae_report)(report), &c, &failure); failure != nil {
		return ReportInfo{}, take(failure)
	}
	return ReportInfo{
		Verdict:       Verdict(c.verdict),
		Findings:      int(c.n_findings),
		RowsGiven:     int(c.rows_given),
		RowsMeasured:  int(c.rows_measured),
		RowsNotFinite: int(c.rows_not_finite),
		RowsExcluded:  int(c.rows_excluded),
		RowsLarge:     int(c.rows_large),
		Dead:          int(c.dead),
		FVU:           float64(c.fvu),
		L0:            float64(c.l0),
		Bias:          float64(c.bias),
		Norm:          float64(c.norm),
		NormSpread:    float64(c.norm_spread),
		ReferenceFVU:  float64(c.reference_fvu),
	}, nil
}

// A FindingCode says what was found.
type FindingCode int32

const (
	FindingTooFewRows         FindingCode = C.SAE_FINDING_TOO_FEW_ROWS
	FindingNotFinite          FindingCode = C.SAE_FINDING_NOT_FINITE
	FindingWrongScale         FindingCode = C.SAE_FINDING_WRONG_SCALE
	FindingWrongNormalization FindingCode = C.SAE_FINDING_WRONG_NORMALIZATION
	FindingAlreadyNormalized  FindingCode = C.SAE_FINDING_ALREADY_NORMALIZED
	FindingBDecSubtracted     FindingCode = C.SAE_FINDING_B_DEC_SUBTRACTED
	FindingBDecFlag           FindingCode = C.SAE_FINDING_B_DEC_FLAG
	FindingNotCentered        FindingCode = C.SAE_FINDING_NOT_CENTERED
	FindingCentered           FindingCode = C.SAE_FINDING_CENTERED
	FindingWrongPlace         FindingCode = C.SAE_FINDING_WRONG_PLACE
	FindingNearPlace          FindingCode = C.SAE_FINDING_NEAR_PLACE
	FindingDrift              FindingCode = C.SAE_FINDING_DRIFT
	FindingRounded            FindingCode = C.SAE_FINDING_ROUNDED
	FindingBOSMissing         FindingCode = C.SAE_FINDING_BOS_MISSING
	FindingBOSAdded           FindingCode = C.SAE_FINDING_BOS_ADDED
	FindingBOSUnknown         FindingCode = C.SAE_FINDING_BOS_UNKNOWN
	FindingSinksIncluded      FindingCode = C.SAE_FINDING_SINKS_INCLUDED
	FindingDead               FindingCode = C.SAE_FINDING_DEAD
	FindingL0Off              FindingCode = C.SAE_FINDING_L0_OFF
	FindingNoReference        FindingCode = C.SAE_FINDING_NO_REFERENCE
)

// A Severity is how bad a finding is.
type Severity int32

const (
	SeverityNote    Severity = C.SAE_SEVERITY_NOTE    // worth knowing
	SeverityWarning Severity = C.SAE_SEVERITY_WARNING // numbers are off
	SeverityError   Severity = C.SAE_SEVERITY_ERROR   // numbers are wrong
)

// A Finding is what was found, how bad it is, how it shows, and what to do.
type Finding struct {
	Code     FindingCode
	Severity Severity
	// By what activations are to be multiplied, where that is the remedy; else 0.
	Factor float64
	// FVU once it is mended, where that was tried; else 0.
	FVUMended float64
	// The code in words, what was measured, and what to do.
	Title, Evidence, Advice string
}

// Findings are the worst first, of equals the likeliest cause first.
func (r *Report) Findings() ([]Finding, error) {
	info, err := r.Info()
	if err != nil {
		return nil, err
	}
	report, err := r.share()
	if err != nil {
		return nil, err
	}
	defer r.unshare()
	findings := make([]Finding, info.Findings)
	for i := range findings {
		var failure *C.sae_error
		c := C.sae_finding{struct_size: C.sizeof_sae_finding}
		if C.sae_report_finding((*C.sae_report)(report), C.int64_t(i), &c, &failure); failure != nil {
			return nil, take(failure)
		}
		findings[i] = Finding{
			Code: FindingCode(c.code), Severity: Severity(c.severity), Factor: float64(c.factor), FVUMended: float64(c.fvu_mended),
			Title: C.GoString(c.title), Evidence: C.GoString(c.evidence), Advice: C.GoString(c.advice),
		}
	}
	return findings, nil
}

// Text is the whole report for people; "" once it is closed.
func (r *Report) Text() string {
	c, err := r.share()
	if err != nil {
		return ""
	}
	defer r.unshare()
	return C.GoString(C.sae_report_text((*C.sae_report)(c)))
}

// JSON is the whole report for programs; "" once it is closed.
func (r *Report) JSON() string {
	c, err := r.share()
	if err != nil {
		return ""
	}
	defer r.unshare()
	return C.GoString(C.sae_report_json((*C.sae_report)(c)))
}
