#include "overhead.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "capture.hpp"
#include "progress.hpp"
#include "random_sae.hpp"
#include "steer.hpp"

namespace {

constexpr int rounds = 8, prompt_tokens = 16, decoded_tokens = 24;  // per round

struct Variant {
    std::string name;
    Engine &engine;
    Engine::Hook hook;
    std::vector<double> ms{};  // per decoded token
};

double quantile(std::vector<double> v, double q) {
    const auto at = v.begin() + std::ptrdiff_t(double(v.size() - 1) * q);
    std::nth_element(v.begin(), at, v.end());
    return *at;
}

double median(const std::vector<double> &v) { return quantile(v, 0.5); }

std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
    return "";
}

std::string quoted(const std::string &text) {
    std::string all = "\"";
    for (char c : text)
        if (c == '"' || c == '\\') all += {'\\', c};
        else if (static_cast<unsigned char>(c) >= 0x20) all += c;
    return all + '"';
}

std::string number(double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4f", x);
    return text;
}

// A prompt, then tokens one by one, as one request is served.
void measure(const Model &model, Variant &variant) {
    const HookScope hook(variant.engine, variant.hook);
    variant.engine.forget();
    std::vector<BatchRow> batch{{model.start(), 0, 0}};
    for (int32_t pos = 1; pos < prompt_tokens; pos++) batch.push_back({300 + 7 * pos, pos, 0, pos + 1 == prompt_tokens});
    variant.engine.decode(batch);
    for (int32_t i = 0; i < decoded_tokens; i++) {
        batch.assign(1, {500 + 11 * i, prompt_tokens + i, 0, true});
        const auto start = std::chrono::steady_clock::now();
        variant.engine.decode(batch);
        variant.ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
}

}  // namespace

void show_overhead(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, const std::string &file) {
    const sae_info info = sae.info();
    sae::Session small = make_session(sae, pool, prompt_tokens);
    const sae::Model n32768 = random_sae(info.d_in, 32768, info.k), n32768_bf16 = random_sae(info.d_in, 32768, info.k, sae::dtype_of<sae::bf16>());
    sae::Session large = make_session(n32768, pool, prompt_tokens), large_bf16 = make_session(n32768_bf16, pool, prompt_tokens);
    sae::Session plain = make_session(n32768, pool, prompt_tokens, SAE_SESSION_NO_SCREEN);
    sae::Features features(prompt_tokens, info.k);
    BatchSteering add(sae, pool, prompt_tokens, 1), set(sae, pool, prompt_tokens, 1);
    add.set(0, {sae::add(0, 1)});
    set.set(0, {sae::set(0, 1)});

    const auto capture = [&](sae::Session &session) {
        return [&](const Residual &r) {
            session.encode({r.data, r.rows, r.d}, features.slice(0, r.rows));
            return Then::go_on;
        };
    };
    const auto steer = [](BatchSteering &steering) {
        return [&steering](const Residual &r) {
            steering(r, {0});
            return Then::go_on;
        };
    };
    EngineOptions options;
    options.layer = layer;
    options.n_threads = pool.threads();
    Engine hooked(model, options);
    options.hooked = false;
    Engine bare(model, options);
    std::vector<Variant> variants = {
        {"the engine alone, without a callback", bare, nullptr},
        {"capture and steering switched off", hooked, nullptr},
        {"reading the residual, no SAE", hooked, [](const Residual &) { return Then::go_on; }},
        {"capture, n = " + std::to_string(info.n_latents), hooked, capture(small)},
        {"capture, n = 32768", hooked, capture(large)},
        {"capture, n = 32768, weights in bf16", hooked, capture(large_bf16)},
        {"capture, n = 32768, without the screen", hooked, capture(plain)},
        {"steering, add one feature", hooked, steer(add)},
        {"steering, clamp one feature (encodes)", hooked, steer(set)},
    };
    {
        Progress progress("measuring", rounds);
        for (int round = 0; round < rounds; round++) {  // by turns, so that what else the machine does falls on all alike
            for (size_t v = 0; v < variants.size(); v++) measure(model, variants[(v + size_t(round)) % variants.size()]);
            progress.show(round + 1);
        }
    }
    double load = -1;
    const unsigned cores = std::thread::hardware_concurrency();
    if (getloadavg(&load, 1) == 1 && load > 1.5 * cores)
        std::printf("This machine has other work to do (load %.1f on %u cores): the numbers are not worth much.\n", load, cores);
    const double alone = median(variants[0].ms);
    std::printf("Per decoded token of one sequence (medians of %d), the engine and the library on %d threads each, of %u cores:\n", rounds * decoded_tokens, pool.threads(), cores);
    for (const Variant &variant : variants) {
        const double ms = median(variant.ms);
        std::printf("  %-40s %7.2f ms  %+6.2f ms  %+5.1f%%\n", variant.name.c_str(), ms, ms - alone, 100 * (ms / alone - 1));
    }

    std::ofstream json(file, std::ios::trunc);
    json << "{\n  \"model\": " << quoted(model.name() + ", " + model.description()) << ",\n  \"hook\": \"l_out-" << layer << "\",\n  \"d\": " << info.d_in
         << ",\n  \"k\": " << info.k << ",\n  \"processor\": " << quoted(processor()) << ",\n  \"cores\": " << cores
         << ",\n  \"threads_of_engine\": " << options.n_threads << ",\n  \"threads_of_library\": " << pool.threads() << ",\n  \"load_average\": " << number(load)
         << ",\n  \"tokens_per_variant\": " << rounds * decoded_tokens << ",\n  \"per_decoded_token\": [\n";
    for (const Variant &variant : variants)
        json << "    {\"what\": " << quoted(variant.name) << ", \"ms\": " << number(median(variant.ms)) << ", \"ms_quartiles\": [" << number(quantile(variant.ms, 0.25)) << ", "
             << number(quantile(variant.ms, 0.75)) << "], \"ratio\": " << number(median(variant.ms) / alone) << (&variant == &variants.back() ? "}\n" : "},\n");
    json << "  ]\n}\n";
    json.close();
    if (!json) throw std::runtime_error("cannot write " + file);
    std::printf("The same as JSON: %s\n", file.c_str());
}
