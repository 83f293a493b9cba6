#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "capture.hpp"
#include "generate.hpp"
#include "ggml.h"
#include "random_sae.hpp"
#include "record.hpp"
#include "splice.hpp"
#include "steer.hpp"
#include "test.hpp"
#include "themes.hpp"
#include "train.hpp"

namespace {

TrainSettings small() {
    TrainSettings s;
    s.tokens = 5120;
    s.n_latents = 1024;
    return s;
}

std::string bytes_of(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// The data of an .npy file, if it has this type and shape.
std::string npy(const std::string &path, const std::string &dtype, const std::string &shape, size_t bytes) {
    const std::string all = bytes_of(path);
    if (all.size() < 10 || all.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) != 0) return "";
    const size_t start = 10 + static_cast<unsigned char>(all[8]) + 256 * size_t(static_cast<unsigned char>(all[9]));
    const std::string head = all.substr(10, start - 10);
    const bool as_said = head.find("'" + dtype + "'") != std::string::npos && head.find(shape) != std::string::npos && start % 64 == 0;
    return as_said && all.size() == start + bytes ? all.substr(start) : "";
}

template <class F>
std::string refusal(F f) {
    try {
        f();
    } catch (const std::exception &e) {
        return e.what();
    }
    return "";
}

void contexts_are_true(const sae::Model &sae, const sae::Pool &pool, const Rows &kept, const Contexts &contexts, size_t window) {
    sae::Session session = make_session(sae, pool, 1);
    const sae_info info = sae.info();
    sae::Features features(1, info.k);
    size_t looked = 0, found = 0;
    for (int32_t feature = 0; feature < int32_t(info.n_latents) && looked < 50; feature++) {
        if (contexts.best(feature).empty()) continue;
        const Context &best = contexts.best(feature).front();
        looked++;
        session.encode({kept.x.data() + (best.window * window + best.pos) * size_t(info.d_in), 1, info.d_in}, features);
        for (const auto [f, value] : features.row(0)) found += f == feature && value == best.value;
    }
    expect(looked == 50 && found == looked, "a feature's best context is a token where it fires as strongly as said (" + std::to_string(found) + " of " + std::to_string(looked) + ")");
}

void steered_texts_differ(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, int32_t feature, float strength) {
    const std::vector<llama_token> prompt = model.tokenize("Yesterday I heard a story about");
    const std::vector<std::vector<llama_token>> prompts(3, prompt);
    EngineOptions e;
    e.layer = layer;
    e.n_seqs = 3;
    e.n_ctx_seq = 64;
    Engine engine(model, e);
    const auto plain = generate(model, engine, prompts, 16);
    BatchSteering steering(sae, pool, 64, 1);
    steering.set(0, {sae::set(feature, strength)});
    const std::vector<int32_t> slots = {-1, 0, -1};
    const HookScope hook(engine, [&](const Residual &r) {
        steering(r, slots);
        return Then::go_on;
    });
    const auto texts = generate(model, engine, prompts, 16);
    expect(texts[0].size() == 16 && texts[0] == plain[0] && texts[2] == plain[2], "generated text of unsteered sequences is what it is without steering");
    expect(texts[1].size() == 16 && texts[1] != plain[1], "and of the sequence with a feature clamped up it is another");
}

void recording_reads_back(const Model &model, const std::string &data, const TrainSettings &s, const Rows &kept, int32_t threads) {
    constexpr size_t training = 300, held_out = 200;
    const std::string folder = data + "/test-recording";
    record(model, {data + "/text", folder, s.layer, training, held_out, s.window, s.seed, threads});
    const auto d = size_t(model.d());
    const std::string x = npy(folder + "/training.npy", "<f2", "(300, " + std::to_string(d) + ")", training * d * 2), tokens = npy(folder + "/training.token.npy", "<i4", "(300,)", training * 4),
                      documents = npy(folder + "/held_out.doc.npy", "<i4", "(200,)", held_out * 4);
    expect(!x.empty() && !tokens.empty() && !documents.empty(), "a recording's files have the types and shapes asked for");
    bool same = x.size() == training * d * 2 && tokens.size() == training * 4;
    size_t row = 0;
    std::vector<ggml_fp16_t> half(d);
    for (size_t i = 0; same && row < training; i++) {  // the same text, in the same order, as training read
        if (!kept.keep[i]) continue;
        ggml_fp32_to_fp16_row(kept.x.data() + i * d, half.data(), int64_t(d));
        same &= std::memcmp(half.data(), x.data() + row * d * 2, d * 2) == 0;
        same &= std::memcmp(&kept.windows[i / s.window].tokens[i % s.window], tokens.data() + row * 4, 4) == 0;
        row++;
    }
    expect(same, "and hold the rows and tokens that training saw");
    std::filesystem::remove_all(folder);
}

// A recording in shards of one batch of text each.
void recording_goes_on(const Model &model, const std::string &data, const TrainSettings &s, int32_t threads) {
    const std::string folder = data + "/test-recording", second = folder + "/training-0001.npy";
    RecordOptions o{data + "/text", folder, s.layer, 1, 1, s.window, s.seed, threads, 1};
    std::filesystem::remove_all(folder);
    record(model, o);
    const std::string first = bytes_of(folder + "/training-0000.npy");
    const auto made = std::filesystem::last_write_time(folder + "/training-0000.npy");
    expect(!first.empty() && !std::filesystem::exists(second), "a shard is made of whole batches of text, and as many as were asked for");
    o.training = first.size() / 2 / size_t(model.d()) + 1;
    record(model, o);
    const std::string whole = bytes_of(second);
    expect(!whole.empty() && std::filesystem::last_write_time(folder + "/training-0000.npy") == made, "one that asks for more goes on behind the shards that are there");
    o.shard = 2 * first.size() / 2 / size_t(model.d());
    expect(refusal([&] { record(model, o); }).find("another recording") != std::string::npos, "shards of other rows in the same folder: refused");
    o.shard = 1;
    std::filesystem::remove_all(folder);
    record(model, o);
    expect(bytes_of(second) == whole && bytes_of(folder + "/training-0000.npy") == first, "and the rows are those of a recording in one go");
    std::filesystem::remove_all(folder);
}

// ReLU of I and −I, and back: every x as it is.
sae::Model identity(int64_t d) {
    std::vector<float> w(size_t(2 * d * d));
    for (int64_t i = 0; i < 2 * d; i++) w[size_t(i * d + i % d)] = i < d ? 1 : -1;
    sae_model_desc desc = SAE_MODEL_DESC_INIT;
    desc.architecture = SAE_ARCHITECTURE_RELU;
    desc.d_in = d;
    desc.n_latents = 2 * d;
    const sae::Tensor matrix(w.data(), 2 * d, d);
    return sae::Model::from_weights(desc, {{"W_enc", matrix}, {"W_dec", matrix}});
}

void splicing_is_bounded(const Model &model, const std::string &data, const TrainSettings &s, const sae::Pool &pool) {
    std::vector<sae::Model> saes;
    saes.push_back(identity(model.d()));
    saes.push_back(random_sae(model.d(), 1024, 32));
    const Spliced spliced = splice(model, saes, pool, {data + "/text", s.layer, 256, s.window, s.seed, pool.threads()});
    expect(spliced.clean > 1 && spliced.clean + 1 < spliced.zero, "without the residual the model predicts worse: " + number(spliced.clean) + " and " + number(spliced.zero) + " nats a token");
    expect(std::fabs(spliced.saes[0] - spliced.clean) < 1e-4, "an SAE that loses nothing recovers all of it (" + number(spliced.saes[0] - spliced.clean) + ")");
    expect(spliced.saes[1] > spliced.clean + 1 && spliced.recovered(1) < 0.8, "and one that knows nothing does not (" + number(spliced.recovered(1)) + ")");
}

// Recording and training do not compute what comes after the hooked block.
void stopping_changes_nothing(const Model &model, int32_t layer, int32_t threads) {
    const std::vector<llama_token> text = model.tokenize("The House of Representatives and the Senate have met, and the state of the Union is good.");
    std::vector<BatchRow> batch;
    for (size_t i = 0; i < 2 * text.size(); i++) batch.push_back({text[i % text.size()], llama_pos(i % text.size()), llama_seq_id(i / text.size())});
    EngineOptions e;
    e.layer = layer;
    e.n_seqs = 2;
    e.n_ctx_seq = 64;
    e.n_threads = threads;
    Engine engine(model, e);
    std::vector<float> rows[2];
    for (const Then then : {Then::go_on, Then::stop}) {
        const HookScope hook(engine, [&](const Residual &r) {
            rows[then == Then::stop].assign(r.data, r.data + r.rows * r.d);
            return then;
        });
        engine.forget();
        engine.decode(batch);
    }
    expect(rows[0].size() == batch.size() * size_t(model.d()) && rows[0] == rows[1], "residuals are the same bits where the engine stops behind them");
}

}  // namespace

void the_whole_runs(const Model &model, const std::string &data, const sae::Pool &pool) {
    std::printf("The demo in small\n");
    const TrainSettings s = small();
    const std::string file = data + "/test.safetensors", text = data + "/text";
    Rows kept;
    train(model, text, s, pool, kept).save(file);
    const sae::Model sae = sae::Model::load(file);
    const sae_info info = sae.info();
    expect(info.n_latents == s.n_latents && info.k == s.k && info.prepend_bos == SAE_YES && info.context_size == s.window && info.n_excluded_positions == 1,
           "the SAE comes back from its file with its convention");
    std::filesystem::remove(file);

    const HeldOut held_out = held_out_fvu(model, sae, text, s, pool, 1024);
    expect(held_out.fvu < 0.9 && held_out.rows >= 1024 && held_out.first >= held_out.rows / s.window,
           "held-out FVU " + number(held_out.fvu) + " over " + std::to_string(held_out.rows) + " rows, " + std::to_string(held_out.first) + " first tokens and " + std::to_string(held_out.large) + " large rows left out");

    const Contexts contexts = find_contexts(sae, pool, kept, s.window);
    contexts_are_true(sae, pool, kept, contexts, s.window);
    const Themes themes(model, kept.windows, contexts);
    Theme theme;
    for (int32_t f = 0; f < int32_t(info.n_latents) && theme.words.empty(); f++) theme = themes.of(f);
    expect(!theme.words.empty(), "feature " + std::to_string(theme.feature) + " has a theme (" + theme.name() + ")");
    if (!theme.words.empty()) steered_texts_differ(model, sae, pool, s.layer, theme.feature, 3 * contexts.max(theme.feature));
    recording_reads_back(model, data, s, kept, pool.threads());
    recording_goes_on(model, data, s, pool.threads());
    stopping_changes_nothing(model, s.layer, pool.threads());
    splicing_is_bounded(model, data, s, pool);

    const auto trained = [&](TrainSettings wrong, const std::string &folder) {
        Rows rows;
        train(model, folder, wrong, pool, rows);
    };
    TrainSettings none = s, much = s, outside = s;
    none.tokens = 0;
    much.tokens = 1'000'000'000;
    outside.layer = model.n_layers();
    const std::string brief = data + "/test-text";
    std::filesystem::create_directories(brief);
    for (int i = 0; i < 7; i++) std::ofstream(brief + "/" + std::to_string(i) + ".txt") << "Too short.";
    expect(refusal([&] { trained(none, text); }).find("not for 0") != std::string::npos, "no tokens to train on: refused");
    expect(refusal([&] { trained(much, text); }).find("there is text for") != std::string::npos, "more tokens than there is text: refused");
    expect(refusal([&] { trained(outside, text); }).find("cannot be hooked") != std::string::npos, "a layer the model has not: refused");
    expect(refusal([&] { trained(s, brief); }).find("too short") != std::string::npos, "text too short for a window: refused");
    expect(refusal([&] { held_out_fvu(model, sae, brief, s, pool, 1024); }).find("held out") != std::string::npos, "no held-out text: refused");
    std::filesystem::remove_all(brief);
}
