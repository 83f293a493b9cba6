#include "capture.hpp"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <set>

#include "device.hpp"

namespace {

constexpr size_t rows_per_call = 1024;
constexpr double common = 0.02;  // features that fire on more tokens than this say little of any of them

std::string one_line(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

}  // namespace

std::string show_context(const Model &model, const Window &window, size_t pos) {
    const size_t first = pos > 10 ? pos - 10 : 1, last = std::min(window.tokens.size(), pos + 6);
    return one_line(model.text(window.tokens.data() + first, pos - first)) + "[" + one_line(model.text(window.tokens[pos])) + "]" +
           one_line(model.text(window.tokens.data() + pos + 1, last - pos - 1));
}

sae::Session make_session(const sae::Model &sae, const sae::Pool &pool, size_t max_rows, uint32_t flags) {
    sae_session_options options = SAE_SESSION_OPTIONS_INIT;
    options.max_tokens = int64_t(max_rows);
    options.pool = pool.get();
    options.flags = flags;
    return sae::Session::create(sae, &options);
}

Contexts find_contexts(const sae::Model &sae, const sae::Pool &pool, const Rows &kept, size_t window) {
    const sae_info info = sae.info();
    const auto d = size_t(info.d_in);
    Contexts contexts(size_t(info.n_latents));
    sae::Session session = make_session(sae, pool, rows_per_call);
    sae::Features features(rows_per_call, info.k);
    for (size_t i = 0; i < kept.keep.size(); i += rows_per_call) {
        const size_t n = std::min(rows_per_call, kept.keep.size() - i);
        session.encode({kept.x.data() + i * d, int64_t(n), info.d_in}, features.slice(0, int64_t(n)));
        for (size_t j = 0; j < n; j++) {
            if (!kept.keep[i + j]) continue;
            contexts.count_token();
            for (const auto [feature, value] : features.row(int64_t(j)))
                contexts.add(feature, {value, uint32_t((i + j) / window), uint32_t((i + j) % window)});
        }
    }
    return contexts;
}

void show_capture(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, const std::string &prompt, const Rows &seen,
                  const Contexts &contexts, const Themes &themes) {
    const std::vector<llama_token> tokens = model.tokenize(prompt);
    std::vector<BatchRow> batch{{model.start(), 0, 0}};
    for (llama_token t : tokens) batch.push_back({t, batch.back().pos + 1, 0});

    EngineOptions e;
    e.layer = layer;
    e.n_threads = pool.threads();
    e.n_ctx_seq = e.n_batch = e.n_ubatch = uint32_t(batch.size());
    const sae_info info = sae.info();
    e.on_device = info.device.device_type != SAE_DEVICE_CPU;
    Engine engine(model, e);
    sae::Session session = make_session(sae, pool, batch.size());
    sae::Features features(int64_t(batch.size()), info.k);
    std::unique_ptr<Beside> beside;
    std::vector<int64_t> feature_row(batch.size());
    engine.on_residual([&](const Residual &r) {
        if (e.on_device) {
            if (!beside) beside = std::make_unique<Beside>(r, features.tokens(), features.width());
            beside->encode(session, r, features);
        } else {
            session.encode({r.data, r.rows, r.d}, features.slice(0, r.rows));
        }
        for (int64_t i = 0; i < r.rows; i++) feature_row[size_t(r.batch_row[i])] = i;
        return Then::go_on;
    });
    engine.decode(batch);

    std::vector<std::pair<float, int32_t>> strongest;  // by how near they come to the most seen in training
    std::printf("\n%-14s strongest features of those that fire on less than 2%% of tokens (activation; words of their best contexts)\n", "token");
    for (size_t i = 1; i < batch.size(); i++) {
        const std::string token = one_line(model.text(batch[i].token));
        std::printf("%-14s", token.c_str() + (token[0] == ' '));
        int shown = 0;
        for (const auto [feature, value] : features.row(feature_row[i])) {
            if (contexts.density(feature) > common) continue;
            const Theme theme = themes.of(feature);
            if (shown++ < 3) std::printf("  #%d %.1f (%s)", feature, value, theme.name().c_str());
            if (theme.words.size() >= 3) strongest.emplace_back(value / contexts.max(feature), feature);
        }
        std::printf("\n");
    }

    std::sort(strongest.rbegin(), strongest.rend());
    std::set<int32_t> shown;
    for (size_t i = 0; i < strongest.size() && shown.size() < 4; i++) {
        const int32_t feature = strongest[i].second;
        if (!shown.insert(feature).second) continue;
        std::printf("\nfeature %d, active on %.2f%% of tokens, best contexts in training:\n", feature, 100 * contexts.density(feature));
        for (size_t c = 0; c < std::min<size_t>(contexts.best(feature).size(), 4); c++) {
            const Context &best = contexts.best(feature)[c];
            std::printf("  %6.1f  …%s…\n", best.value, show_context(model, seen.windows[best.window], best.pos).c_str());
        }
    }
}
