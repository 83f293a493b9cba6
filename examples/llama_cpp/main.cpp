// An SAE inside llama.cpp: trained on the residuals that stream by, saved, loaded, read and steered by, in one process.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "capture.hpp"
#include "device.hpp"
#include "engine_threads.hpp"
#include "overhead.hpp"
#include "random_sae.hpp"
#include "record.hpp"
#include "serve.hpp"
#include "splice.hpp"
#include "steer.hpp"
#include "train.hpp"

namespace {

const char *const usage =
    "usage: demo demo   --data FOLDER [--tokens 60000] [--layer 14] [--threads N] [--prompt TEXT]\n"
    "                                 [--gpu-layers 0]\n"
    "       demo record --data FOLDER [--tokens 200000] [--held-out 20000] [--layer 14] [--threads N]\n"
    "                                 [--out FOLDER/recording] [--shard ROWS] [--weights stored|f32]\n"
    "       demo splice --data FOLDER --saes FOLDER --out FILE [--tokens 8192] [--layer 14] [--threads N]\n"
    "                                 [--weights stored|f32]\n"
    "       demo serve  --data FOLDER [--sae FOLDER/sae.safetensors] [--layer 14] [--tokens 48] [--threads N]\n"
    "       demo overhead --data FOLDER [--layer 14] [--threads N]\n"
    "overhead measures alone, with the SAE that demo trained, or a random one of 4608 latents.\n"
    "serve reads requests from its input, one a line, and answers four at once: a prompt, or \"FEATURE:STRENGTH PROMPT\", which adds so much\n"
    "of a feature; each answer with the features that were strongest in it.\n"
    "splice says what of the model's cross-entropy each SAE of a folder recovers, standing for the residual.\n"
    "record --shard writes files of so many rows each, and goes on where an earlier run of the same command ended. --weights f32\n"
    "widens the model's weights first, into FOLDER/model.f32.gguf: on a CPU it then reads more than twice as fast.\n"
    "FOLDER is what get.sh filled: model.gguf and text/. N threads are for the engine, and as many for the library: by default\n"
    "one per core, 8 at most.\n";

class Arguments {
  public:
    Arguments(int argc, char **argv) {
        for (int i = 2; i < argc; i += 2) {
            const std::string name = argv[i];
            if (name.rfind("--", 0) != 0 || i + 1 == argc) throw std::invalid_argument("cannot read the argument " + name);
            values_[name.substr(2)] = argv[i + 1];
        }
    }
    std::string text(const std::string &name, const std::string &otherwise) { return take(name, otherwise); }
    size_t number(const std::string &name, size_t otherwise, size_t least, size_t most) {
        const std::string value = take(name, std::to_string(otherwise));
        const bool digits = !value.empty() && value.size() < 19 && value.find_first_not_of("0123456789") == std::string::npos;
        const size_t n = digits ? size_t(std::stoull(value)) : 0;
        if (!digits || n < least || n > most)
            throw std::invalid_argument("--" + name + " must be a number from " + std::to_string(least) + " to " + std::to_string(most) + ", not \"" + value + "\"");
        return n;
    }
    void finish() const {
        if (!values_.empty()) throw std::invalid_argument("unknown option --" + values_.begin()->first);
    }

  private:
    std::string take(const std::string &name, const std::string &otherwise) {
        const auto found = values_.find(name);
        if (found == values_.end()) return otherwise;
        const std::string value = found->second;
        values_.erase(found);
        return value;
    }
    std::map<std::string, std::string> values_;
};

constexpr size_t most_tokens = 1'000'000'000, most_layers = 10'000;

int32_t layer_of(Arguments &arguments) { return int32_t(arguments.number("layer", 14, 0, most_layers)); }

int32_t threads_of(Arguments &arguments) {
    return int32_t(arguments.number("threads", std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 8), 1, 1024));
}

Model model_of(Arguments &arguments, const std::string &data, int32_t threads) {
    const std::string weights = arguments.text("weights", "stored"), stored = data + "/model.gguf";
    if (weights != "stored" && weights != "f32") throw std::invalid_argument("--weights must be stored or f32, not \"" + weights + "\"");
    return Model(weights == "f32" ? widened(stored, data + "/model.f32.gguf", threads) : stored);
}

void heading(const char *text) { std::printf("\n\033[1m== %s\033[0m\n", text), std::fflush(stdout); }

void demo(Arguments &arguments) {
    const std::string data = arguments.text("data", "build/llama_cpp");
    const std::string prompt = arguments.text("prompt", "The ship sailed for three weeks before the captain saw land, and the crew thanked God that the war was over.");
    TrainSettings settings;
    settings.tokens = arguments.number("tokens", settings.tokens, 1, most_tokens);
    settings.layer = layer_of(arguments);
    const int32_t threads = threads_of(arguments), gpu_layers = int32_t(arguments.number("gpu-layers", 0, 0, most_layers));
    arguments.finish();

    const Model model(data + "/model.gguf");
    model.check_hook(settings.layer);
    const sae::Pool pool = engine_threads(threads);
    const std::string file = data + "/sae.safetensors";

    heading("Training an SAE on the residual stream as the engine reads");
    std::printf("Model: %s (%s), read from its file. Texts begin with its token %s.\n", model.name().c_str(), model.description().c_str(), model.text(model.start()).c_str());
    std::printf("After block %d of %d (l_out-%d): d = %d, n = %lld latents, k = %lld, %zu tokens of books and speeches, %zu passes\n", settings.layer, model.n_layers(),
                settings.layer, model.d(), static_cast<long long>(settings.n_latents), static_cast<long long>(settings.k), settings.tokens, settings.passes);
    Rows kept;
    train(model, data + "/text", settings, pool, kept).save(file);
    const sae::Model sae = sae::Model::load(file);
    const HeldOut held_out = held_out_fvu(model, sae, data + "/text", settings, pool, 4096);
    std::printf("Saved to %s and loaded. FVU on documents it never saw: %.3f over %zu rows\n", file.c_str(), held_out.fvu, held_out.rows);
    std::printf("(attention sinks left out, as in training: %zu first tokens of a window, %zu other rows of %g times the median norm or more)\n", held_out.first, held_out.large,
                double(ResidualStream::large));

    heading("What the features are");
    const Contexts contexts = find_contexts(sae, pool, kept, settings.window);
    const Themes themes(model, kept.windows, contexts);
    // Training reads the engine on the CPU. With layers on a GPU, the SAE goes there to capture and to steer.
    std::unique_ptr<Model> there;
    std::unique_ptr<sae::Model> sae_there;
    if (gpu_layers > 0) {
        there = std::make_unique<Model>(data + "/model.gguf", gpu_layers);
        sae_there = std::make_unique<sae::Model>(on_device(sae, {SAE_DEVICE_CUDA, 0}, file));
    }
    const Model &shown = there ? *there : model;
    const sae::Model &used = sae_there ? *sae_there : sae;
    show_capture(shown, used, pool, settings.layer, prompt, kept, contexts, themes);

    heading("Steering");
    show_steering(shown, used, pool, settings.layer, kept.windows, contexts, themes);

    heading("What it costs");
    show_overhead(model, sae, pool, settings.layer, data + "/overhead.json");
}

void overhead(Arguments &arguments) {
    const std::string data = arguments.text("data", "build/llama_cpp"), file = data + "/sae.safetensors";
    const int32_t layer = layer_of(arguments), threads = threads_of(arguments);
    arguments.finish();
    const Model model(data + "/model.gguf");
    model.check_hook(layer);
    const bool trained = std::ifstream(file).good();
    const sae::Model sae = trained ? sae::Model::load(file) : random_sae(model.d(), 4608, 32);
    show_overhead(model, sae, engine_threads(threads), layer, data + "/overhead.json");
}

void record_residuals(Arguments &arguments) {
    const std::string data = arguments.text("data", "build/llama_cpp");
    RecordOptions o;
    o.text = data + "/text";
    o.folder = arguments.text("out", data + "/recording");
    o.layer = layer_of(arguments);
    o.training = arguments.number("tokens", 200000, 1, most_tokens);
    o.held_out = arguments.number("held-out", 20000, 1, most_tokens);
    o.threads = threads_of(arguments);
    o.shard = arguments.number("shard", 0, 0, most_tokens);
    o.window = 128;
    o.seed = 1;
    const Model model = model_of(arguments, data, o.threads);
    arguments.finish();
    record(model, o);
}

void splice_saes(Arguments &arguments) {
    const std::string data = arguments.text("data", "build/llama_cpp"), saes = arguments.text("saes", ""), out = arguments.text("out", "");
    const size_t tokens = arguments.number("tokens", 8192, 1, most_tokens);
    const int32_t layer = layer_of(arguments), threads = threads_of(arguments);
    const Model model = model_of(arguments, data, threads);
    arguments.finish();
    if (saes.empty() || out.empty()) throw std::invalid_argument("splice needs --saes and --out");
    splice_all(model, saes, engine_threads(threads), {data + "/text", layer, tokens, 128, 1, threads}, out);
}

// "FEATURE:STRENGTH PROMPT", or the prompt alone.
Request request_of(const Model &model, const std::string &line, size_t tokens) {
    const size_t space = line.find(' '), colon = line.find(':');
    const bool edits = colon != std::string::npos && space != std::string::npos && colon < space && line.find_first_not_of("0123456789") == colon;
    if (!edits) return {model.tokenize(line), tokens, {}};
    const sae_edit edit = sae::add(int32_t(std::stoul(line.substr(0, colon))), std::stof(line.substr(colon + 1, space - colon - 1)));
    return {model.tokenize(line.substr(space + 1)), tokens, {{edit}}};
}

void serve(Arguments &arguments) {
    const std::string data = arguments.text("data", "build/llama_cpp"), file = arguments.text("sae", data + "/sae.safetensors");
    const size_t tokens = arguments.number("tokens", 48, 1, 400);
    const int32_t layer = layer_of(arguments), threads = threads_of(arguments);
    const Model model = model_of(arguments, data, threads);
    arguments.finish();
    const sae::Model sae = sae::Model::load(file);
    Server::Options options;
    options.threads = threads;
    Server server(model, {{layer, &sae}}, engine_threads(threads), options);
    struct Answer {
        std::string text;
        std::map<int32_t, float> strongest;
    };
    std::map<int64_t, Answer> answers;
    for (std::string line; std::getline(std::cin, line);)
        if (!line.empty()) answers[server.submit(request_of(model, line, tokens))].text = line + " …";
    while (server.step([&](const Step &step) {
        Answer &answer = answers[step.request];
        answer.text += model.text(step.written);
        for (const auto [feature, value] : step.features[0]) answer.strongest[feature] = std::max(answer.strongest[feature], value);
        if (!step.last) return;
        std::printf("[%lld] %s\n   ", static_cast<long long>(step.request), answer.text.c_str());
        std::vector<std::pair<float, int32_t>> order;
        for (const auto &[feature, value] : answer.strongest) order.push_back({value, feature});
        std::sort(order.rbegin(), order.rend());
        for (size_t i = 0; i < std::min<size_t>(order.size(), 6); i++) std::printf(" %d:%.1f", order[i].second, double(order[i].first));
        std::printf("\n");
    })) {
    }
}

}  // namespace

int main(int argc, char **argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // in step with the progress on stderr
    try {
        const std::string mode = argc > 1 ? argv[1] : "";
        const std::map<std::string, void (*)(Arguments &)> modes = {{"demo", demo}, {"record", record_residuals}, {"serve", serve}, {"splice", splice_saes}, {"overhead", overhead}};
        if (!modes.count(mode)) {
            std::fputs(usage, stderr);
            return 2;
        }
        Arguments arguments(argc, argv);
        modes.at(mode)(arguments);
        return 0;
    } catch (const std::invalid_argument &e) {
        std::fprintf(stderr, "demo: %s\n%s", e.what(), usage);
        return 2;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "demo: %s\n", e.what());
        return 1;
    }
}
