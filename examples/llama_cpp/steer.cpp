#include "steer.hpp"

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "capture.hpp"
#include "generate.hpp"

namespace {

constexpr float clamp_factor = 2;  // times the strongest activation seen in training
const char *const choosing_prompts[] = {"The old man looked at us and said that", "The most important thing is", "When we came home in the evening"};
const char *const shown_prompt = "Yesterday I heard a story about";
constexpr uint32_t choosing_seed = 1, shown_seed = 2;

using Texts = std::vector<std::vector<llama_token>>;

Texts write(const Model &model, int32_t layer, BatchSteering &steering, const Texts &prompts, const std::vector<int32_t> &slots, size_t n,
            uint32_t seed, int32_t threads) {
    size_t longest = 0, all = 0;
    for (const auto &prompt : prompts) longest = std::max(longest, prompt.size() + 1), all += prompt.size() + 1;
    EngineOptions e;
    e.layer = layer;
    e.n_threads = threads;
    e.n_seqs = uint32_t(prompts.size());
    e.n_ctx_seq = uint32_t(longest + n);
    e.n_batch = e.n_ubatch = uint32_t(all);
    e.on_device = steering.on_device();
    Engine engine(model, e);
    engine.on_residual([&](const Residual &r) {
        steering(r, slots);
        return Then::go_on;
    });
    Sampling sampling;
    sampling.seed = seed;
    return generate(model, engine, prompts, n, sampling);
}

sae::Session steering_session(const sae::Model &sae, const sae::Pool &pool, size_t max_rows, size_t slots) {
    sae_session_options options = SAE_SESSION_OPTIONS_INIT;
    options.max_tokens = int64_t(max_rows);
    options.slots = int64_t(slots);
    options.pool = pool.get();
    return sae::Session::create(sae, &options);
}

std::string flat(const Model &model, const std::vector<llama_token> &tokens) {
    std::string text = model.text(tokens.data(), tokens.size());
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

// Each candidate clamped up after each prompt, all in one batch, beside the unsteered text.
Theme choose(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, const Contexts &contexts, const std::vector<Theme> &candidates) {
    BatchSteering steering(sae, pool, 2048, candidates.size());
    Texts prompts;
    std::vector<int32_t> slots;
    for (const char *prompt : choosing_prompts)
        for (int32_t c = -1; c < int32_t(candidates.size()); c++) {  // -1: unsteered
            prompts.push_back(model.tokenize(prompt));
            slots.push_back(c);
        }
    for (size_t c = 0; c < candidates.size(); c++)
        steering.set(int32_t(c), {sae::set(candidates[c].feature, clamp_factor * contexts.max(candidates[c].feature))});
    const Texts texts = write(model, layer, steering, prompts, slots, 40, choosing_seed, pool.threads());

    std::printf("\nTried, each in a sequence of its own: the words of a feature's best contexts, and how often they turn up in %zu texts, unsteered and clamped up\n",
                std::size(choosing_prompts));
    size_t best = 0, best_gain = 0;  // among equals the feature that fires more rarely, which says more
    const size_t stride = candidates.size() + 1;
    for (size_t c = 0; c < candidates.size(); c++) {
        size_t before = 0, after = 0;
        for (size_t p = 0; p < std::size(choosing_prompts); p++) {
            before += candidates[c].found(flat(model, texts[p * stride]));
            after += candidates[c].found(flat(model, texts[p * stride + c + 1]));
        }
        std::printf("  feature %-5d %zu -> %zu  (%s)\n", candidates[c].feature, before, after, candidates[c].all_words().c_str());
        const size_t gain = after > before ? after - before : 0;
        const bool rarer = contexts.density(candidates[c].feature) < contexts.density(candidates[best].feature);
        if (gain > best_gain || (gain && gain == best_gain && rarer)) best = c, best_gain = gain;
    }
    if (best_gain == 0) std::printf("None of them brought its words out; the first is shown all the same.\n");
    return candidates[best];
}

}  // namespace

BatchSteering::BatchSteering(const sae::Model &sae, const sae::Pool &pool, size_t max_rows, size_t slots, bool spare_sinks)
    : session_(steering_session(sae, pool, max_rows, slots)), row_slot_(max_rows), spare_sinks_(spare_sinks),
      on_device_(sae_info(sae.info()).device.device_type != SAE_DEVICE_CPU) {}

void BatchSteering::operator()(const Residual &r, const std::vector<int32_t> &slot_of_sequence) {
    for (int64_t i = 0; i < r.rows; i++) {
        const BatchRow &row = r.at(i);
        row_slot_.at(size_t(i)) = spare_sinks_ && row.pos == 0 ? -1 : slot_of_sequence[size_t(row.seq)];
    }
    if (!on_device_) {
        session_.steer({r.data, r.rows, r.d}, {row_slot_.data(), r.rows});
        return;
    }
    if (!beside_) beside_ = std::make_unique<Beside>(r, int64_t(row_slot_.size()), 1);
    beside_->steer(session_, r, row_slot_);
}

void show_steering(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, const std::vector<Window> &windows,
                   const Contexts &contexts, const Themes &themes) {
    const std::vector<Theme> candidates = themes.most_telling(24);
    if (candidates.empty()) {
        std::printf("\nNo feature has a theme yet: train on more text (TOKENS=).\n");
        return;
    }
    const Theme theme = choose(model, sae, pool, layer, contexts, candidates);
    const float clamped = clamp_factor * contexts.max(theme.feature);
    const Context &best = contexts.best(theme.feature).front();
    std::printf("\nSteering by feature %d (%s), active on %.2f%% of tokens, at most %.1f. Its best contexts:\n", theme.feature, theme.all_words().c_str(),
                100 * contexts.density(theme.feature), contexts.max(theme.feature));
    for (size_t c = 0; c < std::min<size_t>(contexts.best(theme.feature).size(), 5); c++) {
        const Context &context = contexts.best(theme.feature)[c];
        std::printf("  %6.1f  …%s…\n", context.value, show_context(model, windows[context.window], context.pos).c_str());
    }

    const std::vector<llama_token> plain = model.tokenize(shown_prompt);
    const std::vector<llama_token> &w = windows[best.window].tokens;
    size_t from = best.pos > 24 ? best.pos - 24 : 1;
    while (from > 1 && from < best.pos && model.text(w[from])[0] != ' ') from++;  // to where a word starts
    const std::vector<llama_token> own(w.begin() + std::ptrdiff_t(from), w.begin() + std::ptrdiff_t(best.pos + 1));

    BatchSteering steering(sae, pool, 512, 2);
    steering.set(0, {sae::set(theme.feature, clamped)});
    steering.set(1, {sae::ablate(theme.feature)});
    const Texts texts = write(model, layer, steering, {plain, plain, plain, own, own, own}, {-1, 0, 1, -1, 0, 1}, 64, shown_seed, pool.threads());

    std::printf("\nSix sequences in one batch, each by its own slot, from prompts and a seed that had no part in the choice:\n");
    const char *const how[] = {"unsteered", "clamped up", "ablated"};
    for (size_t s = 0; s < texts.size(); s++) {
        if (s % 3 == 0) std::printf("\n  “%s…”\n", flat(model, s ? own : plain).c_str());
        const std::string text = flat(model, texts[s]);
        std::printf("  %-10s (theme words %2.0f%%): %s\n", how[s % 3], 100 * theme.share(text), text.c_str());
    }
}
