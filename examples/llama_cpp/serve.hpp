// A server's loop in small: requests come and go, those that run share each step's batch, and each is read and steered alone, at several
// layers, by edits that may change while it runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <sae.hpp>

#include "engine.hpp"
#include "sampler.hpp"

// Where an SAE reads and steers.
struct Site {
    int32_t layer;
    const sae::Model *sae;
};

struct Request {
    std::vector<llama_token> prompt;            // without the start token
    size_t tokens;                              // how many to write
    std::vector<std::vector<sae_edit>> edits;   // for each site; none: it is only read there
    Sampling sampling = {};
};

// What a step made of a request: the token that was read, its features at each site, and the token that was written after it.
struct Step {
    int64_t request;
    llama_token read, written;
    std::vector<std::vector<sae::Active>> features;  // the strongest first, of what the request's own edits have not yet touched there
    bool last;                                       // the request is done
};

class Server {
  public:
    struct Options {
        uint32_t sequences = 4, positions = 512;  // requests at once, and how long each may become
        size_t prompt_rows = 128;                 // rows of prompts in a step: longer ones are read in parts, beside what is being written
        int32_t threads = 2;
    };

    Server(const Model &model, const std::vector<Site> &sites, const sae::Pool &pool, const Options &options);

    int64_t submit(Request request);                                            // its number; it waits until a sequence is free
    void set_edits(int64_t request, size_t site, std::vector<sae_edit> edits);  // from the next step on
    bool step(const std::function<void(const Step &)> &told);                   // false: nothing was left to do

  private:
    struct Running {
        int64_t number;
        Request request;
        Sampler sampler;
        std::vector<llama_token> tokens;  // the start token, the prompt, what was written
        size_t read = 0, written = 0;     // how many of them are in the engine's cache; how many were written
    };
    struct Reader {  // a site at work
        Site site;
        sae::Session session;
        sae::Features features;
    };

    void admit();
    void apply(size_t sequence, size_t site);
    Then look(const Residual &r);

    const Model &model_;
    Options options_;
    std::vector<Reader> readers_;
    std::vector<int32_t> slot_;                     // of each row of a ubatch
    std::vector<std::unique_ptr<Running>> running_;  // by sequence
    std::deque<std::pair<int64_t, Request>> waiting_;
    int64_t next_ = 0;
    std::vector<std::vector<std::vector<sae::Active>>> seen_;  // by batch row, by site; of rows whose logits are wanted
    Engine engine_;
};
