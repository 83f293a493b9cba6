#include "splice.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>

#include "capture.hpp"
#include "progress.hpp"
#include "stream.hpp"

namespace {

constexpr size_t windows_per_batch = 4;

double cross_entropy(const float *logits, size_t n, llama_token next) {
    const float most = *std::max_element(logits, logits + n);
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += std::exp(logits[i] - most);
    return std::log(double(sum)) + most - logits[next];
}

// The same windows, run again and again with something else for the residual.
class Windows {
  public:
    Windows(const Model &model, Engine &engine, std::vector<Window> windows)
        : engine_(engine), windows_(std::move(windows)), window_(windows_[0].tokens.size()), d_(size_t(model.d())), n_vocab_(size_t(model.n_vocab())) {
        for (size_t seq = 0; seq < windows_.size(); seq++)
            for (size_t pos = 0; pos < window_; pos++) batch_.push_back({windows_[seq].tokens[pos], llama_pos(pos), llama_seq_id(seq), true});
    }

    // The model as it is. Which rows are sinks is seen meanwhile.
    double clean() {
        std::vector<float> x(batch_.size() * d_);
        run([&](const Residual &r) {
            for (int64_t i = 0; i < r.rows; i++) std::copy_n(r.row(i), d_, x.begin() + std::ptrdiff_t(size_t(r.batch_row[i]) * d_));
        });
        keep_ = without_sinks(x, d_, window_);
        return score();
    }

    // With rows of `make(residual)`, `[rows, d]`, for those that are no sinks.
    double with(const std::function<const float *(const Residual &)> &make) {
        run([&](const Residual &r) {
            const float *other = make(r);
            for (int64_t i = 0; i < r.rows; i++)
                if (keep_[size_t(r.batch_row[i])]) std::copy_n(other + i * r.d, d_, r.data + i * r.d);
        });
        return score();
    }

    size_t counted() const {
        size_t n = 0;
        for (size_t row = 0; row < batch_.size(); row++) n += counts(row);
        return n;
    }

  private:
    bool counts(size_t row) const { return keep_[row] && row % window_ + 1 < window_; }

    void run(const std::function<void(const Residual &)> &f) {
        const HookScope hook(engine_, [&](const Residual &r) {
            f(r);
            return Then::go_on;
        });
        engine_.forget();
        engine_.decode(batch_);
    }

    // The sum over all rows that count, of the logits of the last run.
    double score() const {
        double sum = 0;
        for (size_t row = 0; row < batch_.size(); row++)
            if (counts(row)) sum += cross_entropy(engine_.logits(row), n_vocab_, batch_[row + 1].token);
        return sum;
    }

    Engine &engine_;
    std::vector<Window> windows_;
    size_t window_, d_, n_vocab_;
    std::vector<BatchRow> batch_;
    std::vector<int32_t> keep_;
};

}  // namespace

Spliced splice(const Model &model, const std::vector<sae::Model> &saes, const sae::Pool &pool, const SpliceOptions &o) {
    EngineOptions e;
    e.n_threads = o.threads;
    e.layer = o.layer;
    e.n_ctx_seq = uint32_t(o.window);
    e.n_seqs = windows_per_batch;
    e.n_batch = e.n_ubatch = uint32_t(o.window * windows_per_batch);
    Engine engine(model, e);
    Corpus corpus(o.text, Part::held_out, o.window, o.seed);
    std::vector<sae::Session> sessions;
    for (const sae::Model &sae : saes) {
        if (sae.info().d_in != model.d() || sae.info().d_out != model.d())
            throw std::invalid_argument("an SAE of width " + std::to_string(sae.info().d_in) + " cannot stand for the residual of a model of width " + std::to_string(model.d()));
        sessions.push_back(make_session(sae, pool, o.window * windows_per_batch));
    }

    Spliced total;
    total.saes.resize(saes.size());
    std::vector<float> other(o.window * windows_per_batch * size_t(model.d()));
    Progress progress("splicing", double(o.tokens));
    while (total.tokens < o.tokens) {
        std::vector<Window> some;
        for (Window window; some.size() < windows_per_batch && corpus.next(model, window);) some.push_back(window);
        if (some.empty()) throw std::runtime_error("the held-out text has only " + std::to_string(total.tokens) + " tokens, wanted " + std::to_string(o.tokens));
        Windows windows(model, engine, std::move(some));
        total.clean += windows.clean();
        total.zero += windows.with([&](const Residual &) {
            std::fill(other.begin(), other.end(), 0.0f);
            return other.data();
        });
        for (size_t i = 0; i < saes.size(); i++)
            total.saes[i] += windows.with([&](const Residual &r) {
                sessions[i].reconstruct({r.data, r.rows, r.d}, {other.data(), r.rows, r.d});
                return other.data();
            });
        total.tokens += windows.counted();
        progress.show(double(total.tokens), std::to_string(total.tokens) + " tokens");
    }
    const auto n = double(total.tokens);
    total.clean /= n, total.zero /= n;
    for (double &sum : total.saes) sum /= n;
    return total;
}

void splice_all(const Model &model, const std::string &folder, const sae::Pool &pool, const SpliceOptions &o, const std::string &out) {
    std::vector<std::filesystem::path> paths;
    for (const auto &entry : std::filesystem::directory_iterator(folder))
        if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
    if (paths.empty()) throw std::invalid_argument("no .safetensors files in " + folder);
    std::sort(paths.begin(), paths.end());
    std::vector<sae::Model> saes;
    for (const auto &path : paths) saes.push_back(sae::Model::load(path.string()));
    const Spliced s = splice(model, saes, pool, o);

    std::ofstream json;
    json.exceptions(std::ios::failbit | std::ios::badbit);
    json.open(out + ".part");
    json.precision(10);
    json << "{\"tokens\": " << s.tokens << ", \"clean\": " << s.clean << ", \"zero\": " << s.zero << ", \"saes\": {";
    for (size_t i = 0; i < paths.size(); i++)
        json << (i ? ",\n" : "\n") << "  \"" << paths[i].stem().string() << "\": {\"ce\": " << s.saes[i] << ", \"recovered\": " << s.recovered(i) << "}";
    json << "\n}}\n";
    json.close();
    std::filesystem::rename(out + ".part", out);
    std::printf("Cross-entropy over %zu held-out tokens: %.4f, with zeros for l_out-%d %.4f\n", s.tokens, s.clean, o.layer, s.zero);
    for (size_t i = 0; i < paths.size(); i++) std::printf("  %-60s %.4f, %.2f%% recovered\n", paths[i].stem().c_str(), s.saes[i], 100 * s.recovered(i));
}
