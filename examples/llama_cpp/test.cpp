// What the example rests on. Rows are mapped whatever the engine does to a batch; features do not depend on it; steering is what
// llama.cpp's own control vectors do, for the rows it is meant for and for no others; off is off.
//
// Engine builds differ in their last bits, and more rows at once take other kernels: what the engine computes twice by
// different paths is compared with a tolerance, and what it computes by the same path bit for bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <sae.hpp>

#include "capture.hpp"
#include "device.hpp"
#include "engine.hpp"
#include "engine_threads.hpp"
#include "random_sae.hpp"
#include "steer.hpp"
#include "test.hpp"

namespace {

constexpr int32_t layer = 14, k = 32;
int failures = 0;
constexpr int32_t sequences = 6, positions = 40;

// Six texts, sequence after sequence or position after position.
std::vector<BatchRow> batch_of(const Model &model, bool interleaved) {
    static const std::vector<llama_token> text = model.tokenize(
        "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and nothing particular to interest me on shore, I "
        "thought I would sail about a little and see the watery part of the world. It is a way I have of driving off the spleen and regulating the circulation. "
        "Whenever I find myself growing grim about the mouth, whenever it is a damp, drizzly November in my soul, whenever I find myself involuntarily pausing "
        "before coffin warehouses, and bringing up the rear of every funeral I meet, then I account it high time to get to sea as soon as I can.");
    std::vector<BatchRow> batch;
    for (int32_t i = 0; i < sequences * positions; i++) {
        const int32_t seq = interleaved ? i % sequences : i / positions, pos = interleaved ? i / sequences : i % positions;
        batch.push_back({pos ? text[size_t(seq * 13 + pos) % text.size()] : model.start(), pos, seq});
    }
    return batch;
}

size_t place(const BatchRow &row) { return size_t(row.seq * positions + row.pos); }

using FeatureRow = std::map<int32_t, float>;

struct Captured {
    std::vector<float> x;                 // [sequence, position, d]
    std::vector<FeatureRow> features;     // likewise
    bool reordered = false;               // rows came in another order than the batch's
};

EngineOptions options(uint32_t n_ubatch, bool unified, bool hooked = true) {
    EngineOptions o;
    o.layer = layer;
    o.hooked = hooked;
    o.n_ctx_seq = positions + 16;
    o.n_seqs = sequences;
    o.n_ubatch = n_ubatch;
    o.kv_unified = unified;
    o.flash_attention = false;
    return o;
}

Captured capture(const Model &model, sae::Session &session, uint32_t n_ubatch, bool unified, bool interleaved) {
    Engine engine(model, options(n_ubatch, unified));
    const auto d = size_t(model.d());
    Captured c{std::vector<float>(sequences * positions * d), std::vector<FeatureRow>(sequences * positions), false};
    sae::Features features(512, k);
    int32_t expected = 0;
    engine.on_residual([&](const Residual &r) {
        session.encode({r.data, r.rows, r.d}, features.slice(0, r.rows));
        for (int64_t i = 0; i < r.rows; i++) {
            const size_t at = place(r.at(i));
            c.reordered |= r.batch_row[i] != expected++;
            std::copy_n(r.row(i), d, c.x.begin() + std::ptrdiff_t(at * d));
            for (const auto [feature, value] : features.row(i)) c.features[at][feature] = value;
        }
        return Then::stop;
    });
    engine.decode(batch_of(model, interleaved));
    return c;
}

double distance(const float *a, const float *b, size_t d) {
    double sum = 0;
    for (size_t i = 0; i < d; i++) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    return std::sqrt(sum);
}

double norm(const float *a, size_t d) {
    const std::vector<float> zero(d);
    return distance(a, zero.data(), d);
}

// The share of two tokens' feature mass that they have in common.
double overlap(const FeatureRow &a, const FeatureRow &b) {
    double common = 0, all = 0;
    for (const auto &[feature, value] : a) {
        const auto found = b.find(feature);
        if (found != b.end()) common += std::min(value, found->second);
        all += value;
    }
    return all > 0 ? common / all : 1;
}

// Each sequence alone in an engine of its own and in one ubatch, where row i is position i whatever the row map says.
Captured capture_alone(const Model &model, sae::Session &session) {
    const auto d = size_t(model.d());
    Captured c{std::vector<float>(sequences * positions * d), std::vector<FeatureRow>(sequences * positions), false};
    sae::Features features(positions, k);
    const std::vector<BatchRow> all = batch_of(model, false);
    for (int32_t seq = 0; seq < sequences; seq++) {
        EngineOptions o = options(512, false);
        o.n_seqs = 1;
        Engine engine(model, o);
        engine.on_residual([&](const Residual &r) {
            if (r.rows != positions) throw std::logic_error("a sequence alone came in parts");
            session.encode({r.data, r.rows, r.d}, features.slice(0, r.rows));
            const auto first = size_t(seq * positions);
            std::copy_n(r.data, positions * d, c.x.begin() + std::ptrdiff_t(first * d));
            for (size_t i = 0; i < size_t(positions); i++)
                for (const auto [feature, value] : features.row(int64_t(i))) c.features[first + i][feature] = value;
            return Then::stop;
        });
        std::vector<BatchRow> batch(all.begin() + seq * positions, all.begin() + (seq + 1) * positions);
        for (BatchRow &row : batch) row.seq = 0;
        engine.decode(batch);
    }
    return c;
}

// Other shapes of a ubatch take other kernels, which add up in another order; the last bits that differ then move quantised
// activations by whole steps, block after block. Measured (AVX-512): mean 0.013, worst row 0.084, least overlap 92%, mean 98.6%;
// the bounds are about twice as far. Rows of other tokens are much further apart: no row may be nearer to one of those.
constexpr double most_mean = 0.03, most_worst = 0.2, least_in_common = 0.8, least_mean_in_common = 0.97;

void rows_are_mapped(const Model &model, sae::Session &session) {
    std::printf("Capture does not depend on how a batch is ordered and cut\n");
    const auto d = size_t(model.d());
    constexpr size_t n = sequences * positions;
    const Captured reference = capture_alone(model, session);

    // One cache each: both orders are cut into the same ubatches, so not one bit may differ.
    for (uint32_t n_ubatch : {512u, 100u, 37u}) {
        const Captured plain = capture(model, session, n_ubatch, false, false), mixed = capture(model, session, n_ubatch, false, true);
        bool same_features = true;
        for (size_t i = 0; i < n; i++) same_features &= plain.features[i] == mixed.features[i];
        expect(plain.x == mixed.x && same_features, "interleaved sequences give the same bits, n_ubatch " + std::to_string(n_ubatch));
        if (n_ubatch == 512) expect(mixed.reordered, "(the engine did reorder the interleaved rows)");
    }

    for (bool unified : {false, true})
        for (bool interleaved : {false, true})
            for (uint32_t n_ubatch : {512u, 100u, 7u, 1u}) {
                const Captured c = capture(model, session, n_ubatch, unified, interleaved);
                double mean = 0, worst = 0, least_overlap = 1, mean_overlap = 0;
                size_t strangers = 0;  // rows that are nearer to another token's residual than to their own
                for (size_t i = 0; i < n; i++) {
                    const float *own = reference.x.data() + i * d, *got = c.x.data() + i * d;
                    const double off = distance(got, own, d);
                    for (size_t j = 0; j < n; j++)
                        strangers += j % positions && i % positions && j != i && distance(got, reference.x.data() + j * d, d) < off;
                    worst = std::max(worst, off / norm(own, d));
                    mean += off / norm(own, d) / double(n);
                    const double common = overlap(reference.features[i], c.features[i]);
                    least_overlap = std::min(least_overlap, common);
                    mean_overlap += common / double(n);
                }
                expect(strangers == 0 && mean < most_mean && worst < most_worst && least_overlap > least_in_common && mean_overlap > least_mean_in_common,
                       std::string(unified ? "unified cache" : "one cache each") + (interleaved ? ", interleaved" : "") + ", n_ubatch " + std::to_string(n_ubatch) +
                           ": residuals apart by " + number(mean) + " (most " + number(worst) + "), features " + number(100 * mean_overlap) + "% in common (least " + number(100 * least_overlap) + "%)");
            }
}

std::vector<BatchRow> with_logits(std::vector<BatchRow> batch) {
    for (BatchRow &row : batch) row.wants_logits = true;
    return batch;
}

// The logits of all rows, by sequence and position.
std::vector<std::vector<float>> logits(const Model &model, Engine &engine, bool interleaved = false) {
    const std::vector<BatchRow> batch = with_logits(batch_of(model, interleaved));
    engine.forget();
    engine.decode(batch);
    std::vector<std::vector<float>> all(batch.size());
    for (size_t i = 0; i < batch.size(); i++)
        all[place(batch[i])].assign(engine.logits(i), engine.logits(i) + model.n_vocab());
    return all;
}

double apart(const std::vector<std::vector<float>> &a, const std::vector<std::vector<float>> &b) {
    double most = 0;
    for (size_t s = 0; s < a.size(); s++) most = std::max(most, distance(a[s].data(), b[s].data(), a[s].size()) / norm(b[s].data(), b[s].size()));
    return most;
}

void steering_is_a_control_vector(const Model &model, const sae::Model &sae, const sae::Pool &pool) {
    std::printf("Steering by one decoder row is llama_set_adapter_cvec with that row\n");
    const auto d = size_t(model.d());
    const int32_t feature = 77;
    const float strength = 40;
    std::vector<float> row(d);
    sae.read(SAE_WEIGHT_W_DEC, feature, 1, {row.data(), 1, int64_t(d)});

    Engine engine(model, options(512, false));
    const auto plain = logits(model, engine);

    // A control vector is added before llama.cpp names the residual, so the hook sees it added.
    std::vector<float> seen(sequences * positions * d);
    const auto look = [&](const Residual &r) {
        for (int64_t i = 0; i < r.rows; i++) std::copy_n(r.row(i), d, seen.begin() + std::ptrdiff_t(place(r.at(i)) * d));
        return Then::go_on;
    };
    engine.on_residual(look);
    logits(model, engine);
    const std::vector<float> unsteered = seen;

    std::vector<float> vectors(d * size_t(model.n_layers() - 1));  // from layer 1 on
    for (size_t i = 0; i < d; i++) vectors[d * (layer - 1) + i] = strength * row[i];
    if (llama_set_adapter_cvec(engine.get(), vectors.data(), vectors.size(), int32_t(d), layer, layer) != 0) throw std::runtime_error("llama_set_adapter_cvec failed");
    const auto by_engine = logits(model, engine);
    const std::vector<float> rows_by_engine = seen;
    if (llama_set_adapter_cvec(engine.get(), nullptr, 0, int32_t(d), 0, 0) != 0) throw std::runtime_error("llama_set_adapter_cvec failed");

    BatchSteering steering(sae, pool, 512, 1, false);
    steering.set(0, {sae::add(feature, strength)});
    engine.on_residual([&](const Residual &r) {
        steering(r, std::vector<int32_t>(sequences, 0));
        return look(r);
    });
    const auto by_library = logits(model, engine);
    double least_effect = 1e30, worst_row = 0;  // relative to the steering, and to the row
    for (size_t i = 0; i < seen.size(); i += d) {
        least_effect = std::min(least_effect, distance(&rows_by_engine[i], &unsteered[i], d) / (strength * norm(row.data(), d)));
        worst_row = std::max(worst_row, distance(&seen[i], &rows_by_engine[i], d) / norm(&rows_by_engine[i], d));
    }
    expect(std::abs(least_effect - 1) < 0.01, "the control vector is in every row the hook sees (" + number(least_effect) + " of it at least)");
    expect(worst_row < 1e-5, "the library's rows are apart from the control vector's by " + number(worst_row) + " of their norm at most");
    const double moved = apart(by_engine, plain), off = apart(by_library, by_engine);
    expect(moved > 0.02, "the control vector moves the logits by " + number(moved));
    expect(off < 0.1 * moved, "the library's logits are apart from the control vector's by " + number(off));
}

void others_are_left_alone(const Model &model, const sae::Model &sae, const sae::Pool &pool) {
    std::printf("Steering some sequences of a batch leaves every row of the others alone, bit for bit\n");
    for (bool unified : {false, true}) {
        for (bool interleaved : {false, true}) {
            Engine engine(model, options(100, unified));
            BatchSteering steering(sae, pool, 512, 2, false);
            steering.set(0, {sae::set(5, 60)});
            steering.set(1, {sae::add(6, -60), sae::ablate(7)});
            std::vector<int32_t> slots(sequences, -1);
            engine.on_residual([&](const Residual &r) {
                steering(r, slots);
                return Then::go_on;
            });
            const auto off = logits(model, engine, interleaved);
            slots[1] = 0;
            slots[4] = 1;
            const auto on = logits(model, engine, interleaved);
            bool alone = true, changed = true;
            for (size_t i = 0; i < on.size(); i++) {
                const bool left = slots[i / positions] < 0;
                (left ? alone : changed) &= (on[i] == off[i]) == left;
            }
            expect(alone && changed, std::string(unified ? "unified cache" : "one cache each") + (interleaved ? ", interleaved" : ""));
        }
    }
}

void off_is_off(const Model &model) {
    std::printf("Off is off\n");
    Engine hooked(model, options(512, false)), bare(model, options(512, false, false));
    const auto off = logits(model, hooked), none = logits(model, bare);
    expect(off == none, "the same bits with the hook off as without a callback");

    bool thrown = false;
    hooked.on_residual([](const Residual &) -> Then { throw std::runtime_error("from the hook"); });
    try {
        logits(model, hooked);
    } catch (const std::runtime_error &e) {
        thrown = std::strcmp(e.what(), "from the hook") == 0;
    }
    expect(thrown, "what a hook throws comes out of decode");
    {
        std::vector<BatchRow> outside = batch_of(model, false);
        outside.back().seq = sequences;
        bool failed = false;
        try {
            const HookScope hook(hooked, [](const Residual &) { return Then::stop; });
            hooked.decode(outside);
        } catch (const std::runtime_error &) {
            failed = true;
        }
        expect(failed, "a batch that cannot be decoded is an error");
    }
    expect(logits(model, hooked) == none, "and the engine works on, its hook off");

    bool refused = false;
    try {
        EngineOptions last = options(512, false);
        last.layer = model.n_layers() - 1;
        Engine engine(model, last);
    } catch (const std::invalid_argument &) {
        refused = true;
    }
    expect(refused, "the last block, which carries only output rows, is refused");
}

// The device path, with the engine's own memory for the device's: what differs on a GPU is the name of the device.
void tensors_beside_the_residual_serve(const Model &model, sae::Session &session) {
    std::printf("The device path\n");
    for (const auto &[name, number] : std::map<std::string, int>{{"CUDA0", 0}, {"CUDA13", 13}}) {
        const sae_device device = device_named(name, false);
        expect(device.device_type == SAE_DEVICE_CUDA && device.device_id == number, name + " is the library's CUDA device " + std::to_string(number));
    }
    expect(device_named("CUDA_Host", true).device_type == SAE_DEVICE_CPU, "memory that the host reaches is the CPU's");
    for (const char *name : {"CUDA", "CUDA_Split", "CUDA0_Split", "Vulkan0", "ROCm0", "", "CUD"}) {
        bool refused = false;
        try {
            device_named(name, false);
        } catch (const std::runtime_error &) {
            refused = true;
        }
        expect(refused, std::string("memory of \"") + name + "\" is refused");
    }

    EngineOptions o = options(512, false);
    o.on_device = true;
    Engine engine(model, o);
    bool same_features = true, same_steering = true;
    int64_t rows = 0;
    session.set_edits(0, {sae::add(7, 3), sae::set(9, 5)});
    engine.on_residual([&](const Residual &r) {
        sae::Features direct(r.rows, k), there(r.rows, k);
        session.encode({r.data, r.rows, r.d}, direct.slice(0, r.rows));
        Beside beside(r, r.rows, k);
        beside.encode(session, r, there);
        same_features &= direct.indices() == there.indices() && direct.values() == there.values() && direct.counts() == there.counts();
        std::vector<int32_t> slots(size_t(r.rows), 0);
        for (size_t i = 0; i < slots.size(); i += 3) slots[i] = -1;
        std::vector<float> steered(r.data, r.data + r.rows * r.d);
        session.steer({steered.data(), r.rows, r.d}, {slots.data(), r.rows});
        beside.steer(session, r, slots);
        same_steering &= std::memcmp(steered.data(), r.data, steered.size() * sizeof(float)) == 0;
        rows += r.rows;
        return Then::stop;
    });
    engine.decode(batch_of(model, true));
    expect(rows == sequences * positions && same_features, "features read beside the residual are those read directly");
    expect(same_steering, "and it is steered as it is directly");
    session.set_edits(0, {});
}

}  // namespace

void expect(bool ok, const std::string &what) {
    std::printf("  %s %s\n", ok ? "ok  " : "FAIL", what.c_str());
    failures += !ok;
}

std::string number(double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", x);
    return text;
}

int main(int argc, char **argv) {
    try {
        if (argc != 2) throw std::invalid_argument("usage: test FOLDER (the one get.sh filled)");
        const Model model(std::string(argv[1]) + "/model.gguf");
        const sae::Pool pool = engine_threads(2);
        const sae::Model sae = random_sae(model.d(), 1024, k);
        sae::Session session = make_session(sae, pool, 512);
        rows_are_mapped(model, session);
        steering_is_a_control_vector(model, sae, pool);
        others_are_left_alone(model, sae, pool);
        off_is_off(model);
        tensors_beside_the_residual_serve(model, session);
        a_server_runs(model, pool);
        the_whole_runs(model, argv[1], pool);
        the_doctor_names_faults(model, argv[1], pool);
        std::printf(failures ? "%d failures\n" : "all well\n", failures);
        return failures ? 1 : 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "test: %s\n", e.what());
        return 1;
    }
}
