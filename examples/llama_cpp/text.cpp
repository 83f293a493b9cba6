#include "text.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

namespace {

bool is_utf8(const std::string &s) {
    for (size_t i = 0; i < s.size();) {
        const auto c = static_cast<unsigned char>(s[i++]);
        size_t follow = c < 0x80 ? 0 : (c >> 5) == 6 ? 1 : (c >> 4) == 14 ? 2 : (c >> 3) == 30 ? 3 : 4;
        if (follow == 4) return false;
        for (; follow; follow--, i++)
            if (i == s.size() || (static_cast<unsigned char>(s[i]) >> 6) != 2) return false;
    }
    return true;
}

std::string latin1_to_utf8(const std::string &s) {
    std::string out;
    for (char c : s) {
        const auto u = static_cast<unsigned char>(c);
        if (u < 0x80) out += c;
        else out += {char(0xC0 | u >> 6), char(0x80 | (u & 0x3F))};
    }
    return out;
}

std::string single_spaces(const std::string &s) {
    std::string out;
    for (char c : s) {
        const bool space = c == ' ' || c == '\n' || c == '\r' || c == '\t';
        if (!space) out += c;
        else if (!out.empty() && out.back() != ' ') out += ' ';
    }
    return out;
}

std::string read(const std::filesystem::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::string s{std::istreambuf_iterator<char>(file), {}};
    return single_spaces(is_utf8(s) ? s : latin1_to_utf8(s));
}

// Pieces of at least `min` bytes, each ending with a sentence.
std::deque<std::pair<size_t, size_t>> cut(const std::string &s, size_t min) {
    std::deque<std::pair<size_t, size_t>> pieces;
    size_t start = 0;
    for (size_t i = 0; i + 2 < s.size(); i++) {
        const bool ends = (s[i] == '.' || s[i] == '!' || s[i] == '?') && s[i + 1] == ' ' && s[i + 2] >= 'A' && s[i + 2] <= 'Z';
        if (!ends || i + 1 - start < min) continue;
        pieces.emplace_back(start, i + 1 - start);
        start = i + 2;
    }
    return pieces;
}

}  // namespace

Corpus::Corpus(const std::string &folder, Part part, size_t window, uint32_t seed) : window_(window) {
    std::vector<std::filesystem::path> paths;
    if (std::filesystem::is_directory(folder))
        for (const auto &entry : std::filesystem::directory_iterator(folder))
            if (entry.path().extension() == ".txt") paths.push_back(entry.path());
    if (paths.empty()) throw std::runtime_error("no .txt files in " + folder + " (run examples/llama_cpp/get.sh first)");
    std::sort(paths.begin(), paths.end());

    std::mt19937 random(seed);
    std::shuffle(paths.begin(), paths.end(), std::mt19937(1));  // the split into parts does not depend on the seed
    size_t seen[2] = {0, 0};
    for (const auto &path : paths) {
        const std::string name = path.stem().string();
        const bool speech = name[0] >= '0' && name[0] <= '9';
        const bool held_out = seen[speech]++ % 6 == 0;
        if (held_out != (part == Part::held_out)) continue;
        Document document{name, read(path), {}};
        document.pieces = cut(document.text, 6 * window);  // about 4.3 bytes a token: long enough, nearly always
        if (document.pieces.empty()) continue;
        std::shuffle(document.pieces.begin(), document.pieces.end(), random);
        turns_[speech].push_back(int32_t(documents_.size()));
        documents_.push_back(std::move(document));
    }
    for (auto &turn : turns_) std::shuffle(turn.begin(), turn.end(), random);
}

size_t Corpus::pieces() const {
    size_t n = 0;
    for (const Document &document : documents_) n += document.pieces.size();
    return n;
}

bool Corpus::next_piece(bool speech, Window &window, std::string_view &text) {
    std::deque<int32_t> &turn = turns_[speech];
    if (turn.empty()) return false;
    window.document = turn.front();
    window.speech = speech;
    turn.pop_front();
    Document &document = documents_[size_t(window.document)];
    const auto [offset, length] = document.pieces.front();
    document.pieces.pop_front();
    if (!document.pieces.empty()) turn.push_back(window.document);
    text = std::string_view(document.text).substr(offset, length);
    return true;
}

bool Corpus::next(const Model &model, Window &window) {
    std::string_view text;
    while (next_piece(speech_ = !speech_, window, text) || next_piece(!speech_, window, text)) {
        const std::vector<llama_token> tokens = model.tokenize(text);
        if (tokens.size() < window_ - 1) continue;
        window.tokens.assign(1, model.start());
        window.tokens.insert(window.tokens.end(), tokens.begin(), tokens.begin() + std::ptrdiff_t(window_ - 1));
        return true;
    }
    return false;
}
