#include "record.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "ggml.h"
#include "progress.hpp"
#include "stream.hpp"

namespace {

constexpr size_t windows_per_batch = 8;

// NumPy's format 1.0, written row by row under a temporary name.
class Npy {
  public:
    Npy(std::filesystem::path path, const char *dtype, size_t rows, size_t columns) : path_(std::move(path)), part_(path_.string() + ".part") {
        file_.exceptions(std::ios::failbit | std::ios::badbit);
        file_.open(part_, std::ios::binary | std::ios::trunc);
        std::string head = std::string("{'descr': '") + dtype + "', 'fortran_order': False, 'shape': (" + std::to_string(rows) + "," +
                           (columns ? " " + std::to_string(columns) : "") + "), }";
        head.append(64 - (10 + head.size() + 1) % 64, ' ').push_back('\n');
        const char magic[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, char(head.size() & 0xFF), char(head.size() >> 8)};
        file_.write(magic, sizeof magic).write(head.data(), std::streamsize(head.size()));
    }
    void write(const void *data, size_t bytes) { file_.write(static_cast<const char *>(data), std::streamsize(bytes)); }
    void close() {
        file_.close();
        std::filesystem::rename(part_, path_);
    }

  private:
    std::filesystem::path path_, part_;
    std::ofstream file_;
};

void record_part(const Model &model, Engine &engine, const RecordOptions &o, Part part, size_t n, const std::string &name) {
    Corpus corpus(o.text, part, o.window, o.seed);
    ResidualStream stream(model, engine, corpus, o.window, windows_per_batch);
    const auto d = size_t(model.d());
    const std::filesystem::path folder(o.folder);
    Npy x(folder / (name + ".npy"), "<f2", n, d), documents(folder / (name + "_doc.npy"), "<i4", n, 0), tokens(folder / (name + "_token.npy"), "<i4", n, 0);

    Progress progress(name, double(n));
    std::vector<ggml_fp16_t> half(d);
    size_t done = 0, left_out = 0;
    for (Rows rows; done < n;) {
        if (!stream.next(rows)) throw std::runtime_error("the text has only " + std::to_string(done) + " tokens for " + name + ", wanted " + std::to_string(n));
        for (size_t i = 0; i < rows.keep.size() && done < n; i++) {
            if (!rows.keep[i]) {
                left_out += i % o.window != 0;
                continue;
            }
            const Window &window = rows.windows[i / o.window];
            ggml_fp32_to_fp16_row(rows.x.data() + i * d, half.data(), int64_t(d));
            x.write(half.data(), d * sizeof half[0]);
            documents.write(&window.document, sizeof window.document);
            tokens.write(&window.tokens[i % o.window], sizeof window.tokens[0]);
            done++;
        }
        progress.show(double(done), std::to_string(done) + " rows");
    }
    x.close(), documents.close(), tokens.close();
    std::printf("%s: %zu rows of %zu documents; %zu rows beyond the first of a window left out, being of more than %g times the median norm\n", name.c_str(), done,
                corpus.documents().size(), left_out, double(ResidualStream::large));
}

}  // namespace

void record(const Model &model, const RecordOptions &o) {
    if (o.training == 0 || o.held_out == 0) throw std::invalid_argument("cannot record 0 tokens: give at least 1");
    model.check_hook(o.layer);
    std::filesystem::create_directories(o.folder);
    EngineOptions e;
    e.n_threads = o.threads;
    e.layer = o.layer;
    e.n_ctx_seq = uint32_t(o.window);
    e.n_seqs = windows_per_batch;
    e.n_batch = e.n_ubatch = uint32_t(o.window * windows_per_batch);
    Engine engine(model, e);
    std::printf("%s (%s), l_out-%d; windows of %zu tokens begin with %s, whose row is left out\n", model.name().c_str(), model.description().c_str(), o.layer, o.window,
                model.text(model.start()).c_str());
    record_part(model, engine, o, Part::training, o.training, "training");
    record_part(model, engine, o, Part::held_out, o.held_out, "held_out");
}
