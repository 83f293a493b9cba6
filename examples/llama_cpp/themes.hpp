// What a feature seems to be about, read off the words around the places where it fires most.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "contexts.hpp"
#include "engine.hpp"
#include "text.hpp"

struct Theme {
    int32_t feature = -1;
    double score = 0;                 // bits by which its words stand out of the text at large
    std::vector<std::string> words;   // the most telling first
    bool general = false;             // found in books and in speeches, so no mere form of address or name

    std::string name() const;         // its first words
    std::string all_words() const;
    size_t found(const std::string &text) const;  // how many of its words a text has
    double share(const std::string &text) const;  // the share of a text's words that are the theme's
};

class Themes {
  public:
    Themes(const Model &model, const std::vector<Window> &windows, const Contexts &contexts);

    // What stands out around one feature; no words if nothing does.
    Theme of(int32_t feature) const;

    // General themes of features that fire rarely. Most telling first, each first word once.
    std::vector<Theme> most_telling(size_t n) const;

  private:
    std::vector<Context> distinct(int32_t feature) const;

    const Model &model_;
    const std::vector<Window> &windows_;
    const Contexts &contexts_;
    std::map<std::string, uint32_t> windows_with_;  // in how many windows a word is found near one place
};
