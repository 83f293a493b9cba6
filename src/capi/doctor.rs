//! Whether a model and activations fit: the doctor, and the report it gives.

use std::ffi::{CString, c_char};

use super::boundary::{boundary, check_flags, count, present};
use super::handle::{Handle, get, put, take_back};
use super::model::sae_model;
use super::pool::{pool_or_serial, sae_pool};
use super::sized::{self, Output, sized};
use super::status::{c_text, sae_error, sae_status};
use super::tensor::{given, needed, sae_tensor};
use crate::error::fail;
use crate::evaluation::doctor::{Code, Finding, Options, Report, Sample, Severity, Verdict, examine};

/// What the doctor says of a model and a sample of activations. Free it.
pub struct sae_report {
    report: Report,
    text: CString,
    json: CString,
    findings: Vec<Texts>,
}

impl Handle for sae_report {}

/// What a finding's pointers point to.
struct Texts {
    title: CString,
    evidence: CString,
    advice: CString,
}

/// Nothing speaks against it.
pub const SAE_VERDICT_FITS: i32 = 1;
/// Something is off; features may still mean what they should.
pub const SAE_VERDICT_DOUBTFUL: i32 = 2;
/// The features mean nothing.
pub const SAE_VERDICT_MISFIT: i32 = 3;
/// The sample is too small, or says nothing.
pub const SAE_VERDICT_CANNOT_TELL: i32 = 4;

/// Worth knowing.
pub const SAE_SEVERITY_NOTE: i32 = 1;
/// Numbers are off.
pub const SAE_SEVERITY_WARNING: i32 = 2;
/// Numbers are wrong.
pub const SAE_SEVERITY_ERROR: i32 = 3;

/// Too few usable rows, or rows that do not vary.
pub const SAE_FINDING_TOO_FEW_ROWS: i32 = 1;
/// Rows that are not finite.
pub const SAE_FINDING_NOT_FINITE: i32 = 2;
/// Activations are too small or too large by a factor.
pub const SAE_FINDING_WRONG_SCALE: i32 = 3;
/// The model wants each row normalised, or not normalised, against what its files say.
pub const SAE_FINDING_WRONG_NORMALIZATION: i32 = 4;
/// Rows are normalised already, but the model wants them as the language model has them.
pub const SAE_FINDING_ALREADY_NORMALIZED: i32 = 5;
/// b_dec was subtracted before the activations were handed in.
pub const SAE_FINDING_B_DEC_SUBTRACTED: i32 = 6;
/// The model subtracts b_dec and should not, or the other way round.
pub const SAE_FINDING_B_DEC_FLAG: i32 = 7;
/// The model was trained on rows without their mean.
pub const SAE_FINDING_NOT_CENTERED: i32 = 8;
/// Rows lack their mean, but the model was trained with it.
pub const SAE_FINDING_CENTERED: i32 = 9;
/// Another layer or site, another language model, or activations that the model does not know at all.
pub const SAE_FINDING_WRONG_PLACE: i32 = 10;
/// A neighbouring layer or site.
pub const SAE_FINDING_NEAR_PLACE: i32 = 11;
/// Much is right, and all a little off: quantisation, other text, another version of the language model.
pub const SAE_FINDING_DRIFT: i32 = 12;
/// Values were rounded to few levels.
pub const SAE_FINDING_ROUNDED: i32 = 13;
/// Contexts do not begin with the BOS token.
pub const SAE_FINDING_BOS_MISSING: i32 = 14;
/// Contexts begin with one and the same token, but did not in training.
pub const SAE_FINDING_BOS_ADDED: i32 = 15;
/// Whether contexts begin with BOS cannot be seen.
pub const SAE_FINDING_BOS_UNKNOWN: i32 = 16;
/// Attention sinks are among the rows, which the model was not trained on.
pub const SAE_FINDING_SINKS_INCLUDED: i32 = 17;
/// Many latents never fire.
pub const SAE_FINDING_DEAD: i32 = 18;
/// More or fewer latents are active than should be.
pub const SAE_FINDING_L0_OFF: i32 = 19;
/// There is nothing to compare with: only gross faults show.
pub const SAE_FINDING_NO_REFERENCE: i32 = 20;

/// How to examine. NULL or all zero: the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_doctor_options {
    /// `sizeof(sae_doctor_options)`; `SAE_DOCTOR_OPTIONS_INIT` sets it.
    pub struct_size: usize,
    /// `[T, d_out]`: what the output is compared with. Transcoders need it; NULL: x itself.
    pub target: *const sae_tensor,
    /// `[T]` i32: each row's position in its context, -1 if unknown; NULL: none is known, and BOS can hardly be checked.
    pub positions: *const sae_tensor,
    /// A report of activations known to be good, to compare with; NULL: the reference in the model's convention, if any.
    pub baseline: *const sae_report,
    /// Who computes; NULL: the calling thread alone.
    pub pool: *const sae_pool,
    /// The most rows that are measured, spread over the sample; 0: 16,384.
    pub max_rows: i64,
    /// 0.
    pub flags: u64,
}
sized!(sae_doctor_options: target, positions, baseline, pool, max_rows, flags);

/// The numbers of a report.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_report_info {
    /// `sizeof(sae_report_info)`; `SAE_REPORT_INFO_INIT` sets it.
    pub struct_size: usize,
    /// `SAE_VERDICT_…`.
    pub verdict: i32,
    /// How many findings there are.
    pub n_findings: i32,
    /// Rows of the sample.
    pub rows_given: i64,
    /// Those that were measured.
    pub rows_measured: i64,
    /// Left aside: not finite.
    pub rows_not_finite: i64,
    /// Left aside: at positions that the model's convention leaves out.
    pub rows_excluded: i64,
    /// Left aside: of 8 times the median norm or more.
    pub rows_large: i64,
    /// Latents that were active on no row.
    pub dead: i64,
    /// Fraction of variance unexplained.
    pub fvu: f64,
    /// Active latents per row.
    pub l0: f64,
    /// The share of the error that is the same in every row.
    pub bias: f64,
    /// Median norm of the rows.
    pub norm: f64,
    /// The distance of the norms' quartiles, relative to the median.
    pub norm_spread: f64,
    /// FVU that was expected; 0: unknown.
    pub reference_fvu: f64,
}
sized!(sae_report_info: verdict, n_findings, rows_given, rows_measured, rows_not_finite, rows_excluded, rows_large, dead, fvu, l0,
    bias, norm, norm_spread, reference_fvu);

/// A finding: what, how bad, how it shows, and what to do. Texts are valid until the report is freed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_finding {
    /// `sizeof(sae_finding)`; `SAE_FINDING_INIT` sets it.
    pub struct_size: usize,
    /// `SAE_FINDING_…`.
    pub code: i32,
    /// `SAE_SEVERITY_…`.
    pub severity: i32,
    /// By what activations are to be multiplied, where that is the remedy; else 0.
    pub factor: f64,
    /// FVU once it is mended, where that was tried; else 0.
    pub fvu_mended: f64,
    /// The code in words.
    pub title: *const c_char,
    /// What was measured.
    pub evidence: *const c_char,
    /// What to do.
    pub advice: *const c_char,
}
sized!(sae_finding: code, severity, factor, fvu_mended, title, evidence, advice);

/// Examines whether activations `x` `[T, d_in]` are what a model expects, and names the likely fault if not. Some thousand rows, of
/// many contexts, are a good sample. That they do not fit is no failure of the call: the report says so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_doctor(
    model: *const sae_model,
    x: *const sae_tensor,
    options: *const sae_doctor_options,
    out: *mut *mut sae_report,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        unsafe {
            let model = get("model", model)?;
            let mut sample = Sample::from(needed("x", x)?.read("x")?);
            let mut how = Options::default();
            if let Some(options) = sized::read("options", options)? {
                check_flags("options.flags", u32::try_from(options.flags).unwrap_or(u32::MAX), 0)?;
                let optional = |name: &str, tensor| given(name, tensor)?.map(|tensor| tensor.read(name)).transpose();
                sample.target = optional("target", options.target)?;
                sample.positions = optional("positions", options.positions)?;
                if !options.baseline.is_null() {
                    how.reference = get("options.baseline", options.baseline)?.report.reference();
                }
                how.pool = pool_or_serial("options.pool", options.pool)?;
                how.max_rows = count("options.max_rows", options.max_rows)?;
            }
            let report = examine(model.sae(), &sample, &how)?;
            put(out, sae_report::new(report));
        }
        Ok(())
    })
}

/// The numbers of a report.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_report_get(
    report: *const sae_report,
    out: *mut sae_report_info,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (report, out) = unsafe { (&get("report", report)?.report, Output::new("out", out)?) };
        out.write(&sae_report_info {
            struct_size: 0,
            verdict: match report.verdict {
                Verdict::Fits => SAE_VERDICT_FITS,
                Verdict::Doubtful => SAE_VERDICT_DOUBTFUL,
                Verdict::Misfit => SAE_VERDICT_MISFIT,
                Verdict::CannotTell => SAE_VERDICT_CANNOT_TELL,
            },
            n_findings: report.findings.len() as i32,
            rows_given: report.rows_given as i64,
            rows_measured: report.metrics.rows as i64,
            rows_not_finite: report.rows_not_finite as i64,
            rows_excluded: report.rows_excluded as i64,
            rows_large: report.rows_large as i64,
            dead: report.metrics.dead as i64,
            fvu: report.metrics.fvu,
            l0: report.metrics.l0,
            bias: report.metrics.bias,
            norm: report.norm,
            norm_spread: report.norm_spread,
            reference_fvu: report.reference.fvu.unwrap_or(0.0),
        });
        Ok(())
    })
}

/// Finding `i` of a report, from 0: the worst first, of equals the likeliest cause first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_report_finding(
    report: *const sae_report,
    i: i64,
    out: *mut sae_finding,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (report, out) = unsafe { (get("report", report)?, Output::new("out", out)?) };
        let found = usize::try_from(i).ok().and_then(|i| Some((report.report.findings.get(i)?, &report.findings[i])));
        let Some((finding, texts)) = found else {
            return fail!(InvalidArgument, "i: {i} is not one of the report's {} findings", report.findings.len());
        };
        out.write(&sae_finding {
            struct_size: 0,
            code: code(finding.code),
            severity: match finding.severity {
                Severity::Note => SAE_SEVERITY_NOTE,
                Severity::Warning => SAE_SEVERITY_WARNING,
                Severity::Error => SAE_SEVERITY_ERROR,
            },
            factor: finding.factor.unwrap_or(0.0),
            fvu_mended: finding.fvu_mended.unwrap_or(0.0),
            title: texts.title.as_ptr(),
            evidence: texts.evidence.as_ptr(),
            advice: texts.advice.as_ptr(),
        });
        Ok(())
    })
}

/// The whole report as text for people, valid until it is freed; "" for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_report_text(report: *const sae_report) -> *const c_char {
    // SAFETY: the caller's handle.
    unsafe { report.as_ref() }.map_or(c"".as_ptr(), |report| report.text.as_ptr())
}

/// The whole report as JSON, valid until it is freed; "" for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_report_json(report: *const sae_report) -> *const c_char {
    // SAFETY: the caller's handle.
    unsafe { report.as_ref() }.map_or(c"".as_ptr(), |report| report.json.as_ptr())
}

/// Frees a report; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_report_free(report: *mut sae_report) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(report) };
}

impl sae_report {
    fn new(report: Report) -> Self {
        let texts = |finding: &Finding| Texts {
            title: c_text(finding.code.title()),
            evidence: c_text(&finding.evidence),
            advice: c_text(&finding.advice),
        };
        let findings = report.findings.iter().map(texts).collect();
        Self { text: c_text(&report.to_string()), json: c_text(&report.json()), findings, report }
    }
}

fn code(code: Code) -> i32 {
    match code {
        Code::TooFewRows => SAE_FINDING_TOO_FEW_ROWS,
        Code::NotFinite => SAE_FINDING_NOT_FINITE,
        Code::WrongScale => SAE_FINDING_WRONG_SCALE,
        Code::WrongNormalization => SAE_FINDING_WRONG_NORMALIZATION,
        Code::AlreadyNormalized => SAE_FINDING_ALREADY_NORMALIZED,
        Code::BDecSubtracted => SAE_FINDING_B_DEC_SUBTRACTED,
        Code::BDecFlag => SAE_FINDING_B_DEC_FLAG,
        Code::NotCentered => SAE_FINDING_NOT_CENTERED,
        Code::Centered => SAE_FINDING_CENTERED,
        Code::WrongPlace => SAE_FINDING_WRONG_PLACE,
        Code::NearPlace => SAE_FINDING_NEAR_PLACE,
        Code::Drift => SAE_FINDING_DRIFT,
        Code::Rounded => SAE_FINDING_ROUNDED,
        Code::BosMissing => SAE_FINDING_BOS_MISSING,
        Code::BosAdded => SAE_FINDING_BOS_ADDED,
        Code::BosUnknown => SAE_FINDING_BOS_UNKNOWN,
        Code::SinksIncluded => SAE_FINDING_SINKS_INCLUDED,
        Code::Dead => SAE_FINDING_DEAD,
        Code::L0Off => SAE_FINDING_L0_OFF,
        Code::NoReference => SAE_FINDING_NO_REFERENCE,
    }
}
