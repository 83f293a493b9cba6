#include "themes.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

namespace {

constexpr size_t reach = 8;  // tokens to either side of the peak

// Words that say nothing of a theme.
const std::set<std::string> common = {
    "about", "above", "after", "again", "against", "ahead", "almost", "alone", "along", "also", "although", "always", "among", "another", "around", "away",
    "back", "because", "been", "before", "began", "being", "best", "between", "beyond", "both", "bring", "brought", "call", "called", "came", "cannot",
    "case", "cause", "certain", "come", "could", "course", "does", "done", "down", "during", "each", "either", "else", "ende", "enough", "ever", "every",
    "example", "felt", "find", "first", "follow", "following", "found", "from", "further", "gave", "general", "give", "given", "goes", "going", "gone",
    "good", "great", "half", "have", "having", "hear", "heard", "held", "here", "hers", "herself", "high", "himself", "however", "indeed", "into", "itself",
    "just", "keep", "kept", "kind", "knew", "know", "known", "large", "last", "later", "least", "leave", "left", "less", "like", "likely", "little", "long",
    "look", "looked", "looking", "made", "make", "making", "manner", "many", "matter", "mean", "means", "might", "mine", "more", "most", "much", "must",
    "myself", "near", "nearly", "need", "never", "next", "none", "nothing", "number", "often", "once", "only", "open", "other", "others", "ourselves",
    "over", "part", "particular", "past", "perhaps", "place", "point", "present", "quite", "rather", "really", "regard", "same", "seem", "seemed", "seems",
    "seen", "self", "sense", "several", "shall", "should", "show", "side", "since", "some", "something", "soon", "still", "such", "take", "taken", "tell",
    "than", "that", "their", "theirs", "them", "themselves", "then", "there", "thereby", "therefore", "these", "they", "thing", "things", "think", "this",
    "those", "thou", "though", "thought", "three", "through", "thus", "time", "times", "told", "took", "toward", "towards", "turn", "turned", "under",
    "unto", "until", "upon", "used", "very", "want", "wanted", "well", "went", "were", "what", "when", "where", "whether", "which", "while", "whole",
    "whom", "whose", "will", "with", "within", "without", "word", "words", "would", "year", "years", "yesterday", "your", "yours", "yourself", "vpon",
    "haue", "selfe", "thee", "doth", "hath"};

std::vector<std::string> words_of(const std::string &text) {
    std::vector<std::string> words;
    std::string word;
    const auto finish = [&] {
        if (word.size() >= 4 && !common.count(word)) words.push_back(word);
        word.clear();
    };
    for (char c : text) {
        if (c >= 'A' && c <= 'Z') word += char(c - 'A' + 'a');
        else if (c >= 'a' && c <= 'z') word += c;
        else finish();
    }
    finish();
    return words;
}

// "vessel" and "vessels" are one word.
std::string stem(const std::string &word) { return word.substr(0, 6); }

// The words near a place, by stem.
std::map<std::string, std::string> around(const Model &model, const Window &window, size_t pos) {
    const size_t first = pos > reach ? pos - reach : 1, last = std::min(window.tokens.size(), pos + reach + 1);
    std::map<std::string, std::string> words;
    for (const std::string &word : words_of(model.text(window.tokens.data() + first, last - first))) words.emplace(stem(word), word);
    return words;
}

std::string joined(const std::vector<std::string> &words, size_t n) {
    std::string all;
    for (size_t i = 0; i < std::min(words.size(), n); i++) all += (i ? ", " : "") + words[i];
    return all;
}

}  // namespace

std::string Theme::name() const { return words.empty() ? "-" : joined(words, 3); }

std::string Theme::all_words() const { return joined(words, words.size()); }

size_t Theme::found(const std::string &text) const {
    std::set<std::string> stems;
    for (const std::string &word : words_of(text)) stems.insert(stem(word));
    return size_t(std::count_if(words.begin(), words.end(), [&](const std::string &word) { return stems.count(stem(word)); }));
}

double Theme::share(const std::string &text) const {
    const std::vector<std::string> all = words_of(text);
    const auto ours = [&](const std::string &w) {
        return std::any_of(words.begin(), words.end(), [&](const std::string &word) { return stem(word) == stem(w); });
    };
    return all.empty() ? 0.0 : double(std::count_if(all.begin(), all.end(), ours)) / double(all.size());
}

Themes::Themes(const Model &model, const std::vector<Window> &windows, const Contexts &contexts) : model_(model), windows_(windows), contexts_(contexts) {
    for (size_t i = 0; i < windows.size(); i++)  // one place a window, as there is one of a feature's contexts a window
        for (const auto &word : around(model, windows[i], reach + i * 37 % (windows[i].tokens.size() - 2 * reach))) windows_with_[word.first]++;
}

// A feature's best contexts without those that read the same around the peak (a form of address, say).
std::vector<Context> Themes::distinct(int32_t feature) const {
    std::set<std::vector<llama_token>> read;
    std::vector<Context> contexts;
    for (const Context &c : contexts_.best(feature)) {
        const std::vector<llama_token> &tokens = windows_[c.window].tokens;
        const auto peak = tokens.begin() + std::ptrdiff_t(c.pos);
        if (read.insert({std::max(peak - 2, tokens.begin()), std::min(peak + 2, tokens.end())}).second) contexts.push_back(c);
    }
    return contexts;
}

Theme Themes::of(int32_t feature) const {
    const std::vector<Context> contexts = distinct(feature);
    std::map<std::string, std::pair<uint32_t, std::string>> found;
    size_t speeches = 0;
    for (const Context &c : contexts) {
        speeches += windows_[c.window].speech;
        for (const auto &[stem, word] : around(model_, windows_[c.window], c.pos)) {
            found[stem].first++;
            found[stem].second = word;
        }
    }
    const size_t books = contexts.size() - speeches;
    if (contexts.size() < 8) return {feature, 0, {}, false};

    std::vector<std::pair<double, std::string>> telling;  // how often the word is there, times how unusual that is
    for (const auto &[stem, seen] : found) {
        const auto usual = windows_with_.find(stem);
        const double base = (usual == windows_with_.end() ? 0.5 : usual->second) / double(windows_.size());
        const double here = seen.first / double(contexts.size());
        if (seen.first >= 3 && here > 2 * base) telling.emplace_back(here * std::log2(here / base), seen.second);
    }
    std::sort(telling.rbegin(), telling.rend());
    Theme theme{feature, 0, {}, 4 * books >= contexts.size() && 4 * speeches >= contexts.size()};
    for (size_t i = 0; i < std::min<size_t>(telling.size(), 8); i++) {
        theme.score += telling[i].first;
        theme.words.push_back(telling[i].second);
    }
    return theme;
}

std::vector<Theme> Themes::most_telling(size_t n) const {
    std::vector<Theme> all;
    for (int32_t feature = 0; feature < int32_t(contexts_.n_latents()); feature++) {
        if (contexts_.best(feature).size() < 8 || contexts_.density(feature) > 0.02) continue;
        Theme theme = of(feature);
        if (theme.words.size() >= 3 && theme.general) all.push_back(std::move(theme));
    }
    std::sort(all.begin(), all.end(), [](const Theme &a, const Theme &b) { return a.score > b.score; });

    std::vector<Theme> chosen;
    std::set<std::string> taken;
    for (Theme &theme : all)
        if (chosen.size() < n && taken.insert(stem(theme.words.front())).second) chosen.push_back(std::move(theme));
    return chosen;
}
