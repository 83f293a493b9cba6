// Real text for the model: books and speeches, cut into windows that start where a sentence starts.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "engine.hpp"

struct Document {
    std::string name;
    std::string text;                        // whitespace runs are single spaces
    std::deque<std::pair<size_t, size_t>> pieces;  // (offset, length) of what was not yet given out, shuffled
};

struct Window {
    int32_t document;                 // its index in Corpus::documents()
    bool speech;                      // or a book
    std::vector<llama_token> tokens;  // the first is the model's start token, the attention's sink
};

enum class Part { training, held_out };  // never two parts of one document

class Corpus {
  public:
    // The .txt files of a folder. Names that begin with a digit are speeches, the others books; they are given out turn by turn,
    // so that a short run sees many documents. The same seed gives the same windows.
    Corpus(const std::string &folder, Part part, size_t window, uint32_t seed);

    bool next(const Model &model, Window &window);  // false: all text was given out
    const std::vector<Document> &documents() const { return documents_; }
    size_t pieces() const;                          // not yet given out; nearly all make a window

  private:
    bool next_piece(bool speech, Window &window, std::string_view &text);

    size_t window_;
    std::vector<Document> documents_;
    std::deque<int32_t> turns_[2];  // documents with pieces left: books, speeches
    bool speech_ = false;           // whose turn it was last
};
