#include "record.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml.h"
#include "progress.hpp"
#include "stream.hpp"

namespace {

constexpr size_t windows_per_batch = 8;

// NumPy's format 1.0, written row by row under a temporary name. How many rows there are is said at the end.
class Npy {
  public:
    Npy(std::filesystem::path path, const char *dtype, size_t columns) : path_(std::move(path)), part_(path_.string() + ".part"), dtype_(dtype), columns_(columns) {
        file_.exceptions(std::ios::failbit | std::ios::badbit);
        file_.open(part_, std::ios::binary | std::ios::trunc);
        head(0);
    }
    void write(const void *data, size_t bytes) { file_.write(static_cast<const char *>(data), std::streamsize(bytes)); }
    void close(size_t rows) {
        file_.seekp(0);
        head(rows);
        file_.close();
        std::filesystem::rename(part_, path_);
    }

  private:
    void head(size_t rows) {
        constexpr size_t bytes = 128;
        std::string text = std::string("\x93NUMPY\x01\x00", 8) + char(bytes - 10) + '\0' + "{'descr': '" + dtype_ + "', 'fortran_order': False, 'shape': (" + std::to_string(rows) + "," +
                           (columns_ ? " " + std::to_string(columns_) : "") + "), }";
        text.append(bytes - 1 - text.size(), ' ').push_back('\n');
        file_.write(text.data(), std::streamsize(text.size()));
    }

    std::filesystem::path path_, part_;
    std::string dtype_;
    size_t columns_;
    std::ofstream file_;
};

// The rows of some batches, with the document and the token of each: NAME.npy, NAME.doc.npy, NAME.token.npy. The rows appear last.
class Shard {
  public:
    Shard(const std::filesystem::path &folder, const std::string &name, size_t d)
        : x_(folder / (name + ".npy"), "<f2", d), documents_(folder / (name + ".doc.npy"), "<i4", 0), tokens_(folder / (name + ".token.npy"), "<i4", 0), half_(d) {}

    void write(const float *x, int32_t document, llama_token token) {
        ggml_fp32_to_fp16_row(x, half_.data(), int64_t(half_.size()));
        x_.write(half_.data(), half_.size() * sizeof half_[0]);
        documents_.write(&document, sizeof document);
        tokens_.write(&token, sizeof token);
        rows_++;
    }
    size_t rows() const { return rows_; }
    void close() { documents_.close(rows_), tokens_.close(rows_), x_.close(rows_); }

  private:
    Npy x_, documents_, tokens_;
    std::vector<ggml_fp16_t> half_;
    size_t rows_ = 0;
};

// How many rows the .npy file of a finished shard holds.
size_t rows_of(const std::filesystem::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::string head(128, '\0');
    const bool read = bool(file.read(head.data(), std::streamsize(head.size())));
    const size_t shape = head.find("'shape': (");
    if (!read || shape == std::string::npos) throw std::runtime_error(path.string() + " is no recording: delete it, or record into another folder");
    return size_t(std::stoull(head.substr(shape + 10)));
}

// One part of the text. In shards: each of so many batches of text, however many rows those leave, so that a later run goes on
// behind those that are there, and a longer one has the same first shards.
class Recorder {
  public:
    Recorder(const Model &model, Engine &engine, const RecordOptions &o, Part part, std::string name)
        : o_(o), name_(std::move(name)), d_(size_t(model.d())), corpus_(o.text, part, o.window, o.seed), stream_(model, engine, corpus_, o.window, windows_per_batch) {}

    void record(size_t n) {
        Progress progress(name_, double(n));
        for (size_t shard = 0, done = 0; done < n; shard++) {
            const std::string name = o_.shard ? name_ + "-" + std::string(shard < 1000 ? 4 - std::to_string(shard).size() : 0, '0') + std::to_string(shard) : name_;
            const std::filesystem::path path = std::filesystem::path(o_.folder) / (name + ".npy");
            if (o_.shard && std::filesystem::exists(path)) {
                stream_.skip(batches());
                done += rows_of(path);
            } else {
                done += write(name, done, o_.shard ? std::numeric_limits<size_t>::max() : n, progress);
            }
        }
        std::printf("%s: %zu documents; %zu rows beyond the first of a window left out now, being of more than %g times the median norm\n", name_.c_str(),
                    corpus_.documents().size(), left_out_, double(ResidualStream::large));
    }

  private:
    size_t batches() const { return (o_.shard + windows_per_batch * (o_.window - 1) - 1) / (windows_per_batch * (o_.window - 1)); }

    size_t write(const std::string &name, size_t before, size_t most, Progress &progress) {
        Shard shard(o_.folder, name, d_);
        Rows rows;
        for (size_t batch = 0; o_.shard ? batch < batches() : shard.rows() < most; batch++) {
            if (!stream_.next(rows)) {
                if (o_.shard && shard.rows()) shard.close();
                throw std::runtime_error("the text has only " + std::to_string(before + shard.rows()) + " tokens for " + name_);
            }
            for (size_t i = 0; i < rows.keep.size() && shard.rows() < most; i++) {
                const Window &window = rows.windows[i / o_.window];
                if (rows.keep[i]) shard.write(rows.x.data() + i * d_, window.document, window.tokens[i % o_.window]);
                else left_out_ += i % o_.window != 0;
            }
            progress.show(double(before + shard.rows()), std::to_string(before + shard.rows()) + " rows");
        }
        shard.close();
        return shard.rows();
    }

    const RecordOptions &o_;
    std::string name_;
    size_t d_;
    Corpus corpus_;
    ResidualStream stream_;
    size_t left_out_ = 0;
};

// What the rows of a folder are. Shards of other rows are not added to it.
void say_what(const std::filesystem::path &folder, const std::string &what) {
    const std::filesystem::path path = folder / "recording.txt";
    std::ifstream file(path);
    const std::string before{std::istreambuf_iterator<char>(file), {}};
    if (!before.empty() && before != what) throw std::invalid_argument(folder.string() + " holds another recording:\n" + before + "This one would be\n" + what + "Choose another folder");
    std::ofstream out;
    out.exceptions(std::ios::failbit | std::ios::badbit);
    out.open(path);
    out << what;
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
    const std::string what = model.name() + " (" + model.description() + "), l_out-" + std::to_string(o.layer) + "\nwindows of " + std::to_string(o.window) + " tokens begin with " +
                             model.text(model.start()) + ", whose row is left out\nseed " + std::to_string(o.seed) + "\n";
    std::fputs(what.c_str(), stdout);
    if (o.shard) say_what(o.folder, what + "shards of " + std::to_string(o.shard) + " rows, rounded up to whole batches of text\n");
    Recorder(model, engine, o, Part::training, "training").record(o.training);
    Recorder(model, engine, o, Part::held_out, "held_out").record(o.held_out);
}
