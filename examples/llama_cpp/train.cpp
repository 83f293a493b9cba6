#include "train.hpp"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <stdexcept>

#include "capture.hpp"
#include "progress.hpp"

namespace {

constexpr size_t windows_per_batch = 8;
constexpr size_t first_sample = 8192;  // rows that the run starts from: b_dec, the loss's normaliser

EngineOptions stream_options(const TrainSettings &s, const sae::Pool &pool) {
    EngineOptions e;
    e.n_threads = pool.threads();
    e.layer = s.layer;
    e.n_ctx_seq = uint32_t(s.window);
    e.n_seqs = windows_per_batch;
    e.n_batch = e.n_ubatch = uint32_t(s.window * windows_per_batch);
    return e;
}

size_t all_tokens(const TrainSettings &s) { return s.tokens + (s.passes - 1) * std::min(s.tokens, max_kept_rows); }

sae::Trainer make_trainer(const Model &model, const TrainSettings &s, const sae::Pool &pool) {
    const std::string name = model.name() + ", " + model.description();
    const std::string hook = "l_out-" + std::to_string(s.layer);
    const uint32_t sink = 0;
    sae_convention convention = SAE_CONVENTION_INIT;
    convention.model_name = name.c_str();
    convention.hook_point = hook.c_str();
    convention.excluded_positions = &sink;
    convention.n_excluded_positions = 1;
    convention.context_size = uint32_t(s.window);
    convention.prepend_bos = SAE_YES;

    sae_train_options o = SAE_TRAIN_OPTIONS_INIT;
    o.pool = pool.get();
    o.convention = &convention;
    o.d = model.d();
    o.n_latents = s.n_latents;
    o.k = s.k;
    o.learning_rate = s.learning_rate;
    o.total_tokens = all_tokens(s);
    o.warmup_steps = 20;
    o.decay_fraction = 0.2f;
    o.clip_norm = 1;
    o.flags = SAE_TRAIN_NO_EMA;
    o.seed = s.seed;
    o.max_batch_tokens = int64_t(s.batch);
    return sae::Trainer::create(o);
}

// Steps of one run, and how it is doing.
class Run {
  public:
    Run(const Model &model, const TrainSettings &s, const sae::Pool &pool)
        : trainer_(make_trainer(model, s, pool)), d_(model.d()), passes_(s.passes), progress_("training", double(all_tokens(s))) {}

    void init(const Rows &rows) {
        std::vector<float> sample;
        for (size_t i = 0; i < rows.keep.size(); i++)
            if (rows.keep[i]) sample.insert(sample.end(), rows.x.begin() + std::ptrdiff_t(i * size_t(d_)), rows.x.begin() + std::ptrdiff_t((i + 1) * size_t(d_)));
        trainer_.init_from({sample.data(), int64_t(sample.size()) / d_, d_});
    }

    void step(const float *x, const int32_t *keep, size_t n, size_t pass) {
        stats_ = trainer_.step({sae::Tensor(x, int64_t(n), d_), sae::Tensor(keep, int64_t(n))});
        done_ += n;
        char note[96];
        std::snprintf(note, sizeof note, "pass %zu/%zu  FVU %.3f  L0 %.1f  dead %llu", pass, passes_, stats_.fvu, stats_.l0, static_cast<unsigned long long>(stats_.dead));
        progress_.show(double(done_), note);
    }

    void waiting(size_t rows) { progress_.show(double(rows), "first sample"); }
    sae::Model finish() { return trainer_.export_model(SAE_EXPORT_WEIGHTS); }

  private:
    sae::Trainer trainer_;
    int64_t d_;
    size_t passes_, done_ = 0;
    Progress progress_;
    sae_train_stats stats_ = SAE_TRAIN_STATS_INIT;
};

void append(Rows &all, const Rows &some) {
    all.windows.insert(all.windows.end(), some.windows.begin(), some.windows.end());
    all.x.insert(all.x.end(), some.x.begin(), some.x.end());
    all.keep.insert(all.keep.end(), some.keep.begin(), some.keep.end());
}

}  // namespace

sae::Model train(const Model &model, const std::string &text, const TrainSettings &s, const sae::Pool &pool, Rows &kept) {
    Corpus corpus(text, Part::training, s.window, s.seed);
    const size_t least = windows_per_batch * s.window, most = corpus.pieces() * s.window;
    if (most < least) throw std::runtime_error("the texts in " + text + " are too few or too short for windows of " + std::to_string(s.window) + " tokens");
    if (s.tokens < least || s.tokens > most)
        throw std::invalid_argument("there is text for " + std::to_string(least) + " to " + std::to_string(most) + " tokens of training, not for " + std::to_string(s.tokens));
    Engine engine(model, stream_options(s, pool));
    ResidualStream stream(model, engine, corpus, s.window, windows_per_batch);
    Run run(model, s, pool);
    const auto d = size_t(model.d());

    const auto steps = [&](const Rows &rows) {
        for (size_t i = 0; i < rows.keep.size(); i += s.batch)
            run.step(rows.x.data() + i * d, rows.keep.data() + i, std::min(s.batch, rows.keep.size() - i), 1);
    };
    size_t streamed = 0;
    bool started = false;
    const auto start = [&] {
        run.init(kept);
        steps(kept);
        started = true;
    };
    for (Rows rows; streamed < s.tokens && stream.next(rows);) {
        streamed += rows.keep.size();
        if (kept.keep.size() + rows.keep.size() <= max_kept_rows) append(kept, rows);
        if (started) steps(rows);
        else if (streamed < std::min(first_sample, s.tokens)) run.waiting(streamed);
        else start();
    }
    if (streamed < s.tokens) {  // some pieces were too short
        if (streamed == 0) throw std::runtime_error("the texts in " + text + " are too short for windows of " + std::to_string(s.window) + " tokens");
        if (!started) start();
        std::fprintf(stderr, "\nThe text came to its end after %zu of %zu tokens; training goes on with those.\n", streamed, s.tokens);
    }

    std::vector<size_t> order(kept.keep.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::mt19937 random(s.seed);
    std::vector<float> x;
    std::vector<int32_t> keep;
    for (size_t pass = 2; pass <= s.passes; pass++) {
        std::shuffle(order.begin(), order.end(), random);
        for (size_t i = 0; i < order.size(); i += s.batch) {
            const size_t n = std::min(s.batch, order.size() - i);
            x.resize(n * d);
            keep.resize(n);
            for (size_t j = 0; j < n; j++) {
                std::copy_n(kept.x.begin() + std::ptrdiff_t(order[i + j] * d), d, x.begin() + std::ptrdiff_t(j * d));
                keep[j] = kept.keep[order[i + j]];
            }
            run.step(x.data(), keep.data(), n, pass);
        }
    }
    return run.finish();
}

HeldOut held_out_fvu(const Model &model, const sae::Model &sae, const std::string &text, const TrainSettings &s, const sae::Pool &pool, size_t tokens) {
    Engine engine(model, stream_options(s, pool));
    Corpus corpus(text, Part::held_out, s.window, s.seed);
    ResidualStream stream(model, engine, corpus, s.window, windows_per_batch);
    const auto d = size_t(model.d());
    HeldOut result;
    std::vector<float> x;
    for (Rows rows; x.size() < tokens * d && stream.next(rows);)
        for (size_t i = 0; i < rows.keep.size(); i++) {
            if (rows.keep[i]) x.insert(x.end(), rows.x.begin() + std::ptrdiff_t(i * d), rows.x.begin() + std::ptrdiff_t((i + 1) * d));
            else (i % s.window ? result.large : result.first)++;
        }
    const size_t n = result.rows = x.size() / d;
    if (n == 0) throw std::runtime_error("no document in " + text + " is held out and long enough for a window of " + std::to_string(s.window) + " tokens");

    sae::Session session = make_session(sae, pool, n);
    std::vector<float> x_hat(x.size());
    session.reconstruct({x.data(), int64_t(n), int64_t(d)}, {x_hat.data(), int64_t(n), int64_t(d)});
    double unexplained = 0, variance = 0;
    for (size_t j = 0; j < d; j++) {
        double mean = 0;
        for (size_t i = 0; i < n; i++) mean += x[i * d + j] / double(n);
        for (size_t i = 0; i < n; i++) {
            const double off = double(x_hat[i * d + j]) - x[i * d + j], from_mean = x[i * d + j] - mean;
            unexplained += off * off;
            variance += from_mean * from_mean;
        }
    }
    result.fvu = unexplained / variance;
    return result;
}
