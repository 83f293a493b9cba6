#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <stdexcept>

#include "capture.hpp"
#include "random_sae.hpp"
#include "serve.hpp"
#include "test.hpp"

namespace {

constexpr int32_t low = 6, high = 20;
constexpr size_t wanted = 6;

struct Told {
    std::vector<llama_token> written;
    std::vector<std::vector<std::vector<sae::Active>>> features;  // by token, by site

    bool operator==(const Told &other) const {
        const auto same = [](const sae::Active &a, const sae::Active &b) { return a.index == b.index && a.value == b.value; };
        if (written != other.written || features.size() != other.features.size()) return false;
        for (size_t t = 0; t < features.size(); t++)
            for (size_t site = 0; site < features[t].size(); site++)
                if (!std::equal(features[t][site].begin(), features[t][site].end(), other.features[t][site].begin(), other.features[t][site].end(), same)) return false;
        return true;
    }
};

struct Bench {
    const Model &model;
    const sae::Pool &pool;
    std::vector<Site> sites;
    std::vector<std::vector<llama_token>> prompts;

    Server server() const {
        Server::Options o;
        o.sequences = 3;
        o.positions = 128;
        o.prompt_rows = 20;
        return Server(model, sites, pool, o);
    }

    // Five requests over three sequences; `between` may change what is asked of them before each step.
    std::map<int64_t, Told> run(const std::map<size_t, std::vector<std::vector<sae_edit>>> &edits, const std::function<void(Server &, size_t)> &between = nullptr) const {
        Server server = this->server();
        for (size_t i = 0; i < prompts.size(); i++) server.submit({prompts[i], wanted, edits.count(i) ? edits.at(i) : std::vector<std::vector<sae_edit>>()});
        std::map<int64_t, Told> all;
        size_t steps = 0;
        do {
            if (between) between(server, steps);
            steps++;
        } while (server.step([&](const Step &step) {
            Told &told = all[step.request];
            told.written.push_back(step.written);
            told.features.push_back(step.features);
        }));
        return all;
    }
};

}  // namespace

void a_server_runs(const Model &model, const sae::Pool &pool) {
    std::printf("A server's loop: requests that come and go, read and steered apart at two layers\n");
    const sae::Model first = random_sae(model.d(), 1024, 16), second = random_sae(model.d(), 2048, 32);
    std::string all = "The captain looked at the sea and said nothing, for there was nothing to say, and the wind had been against them since the morning of the third day.";
    Bench bench{model, pool, {{low, &first}, {high, &second}}, {}};
    for (const std::string &text : {all.substr(0, 40), all, all + " " + all, all.substr(20, 60), all.substr(50)}) bench.prompts.push_back(model.tokenize(text));

    const auto plain = bench.run({});
    bool whole = plain.size() == 5;
    for (const auto &[request, told] : plain) {
        whole &= told.written.size() == wanted;
        for (const auto &sites : told.features) whole &= sites.size() == 2 && sites[0].size() == 16 && sites[1].size() == 32;
    }
    expect(whole && bench.prompts[2].size() > 2 * 20, "five requests over three sequences, one longer than two steps' rows, are all served, each token with its features at both layers");

    // The first token that request 0 reads alone, by an engine of its own at one layer.
    {
        EngineOptions e;
        e.layer = high;
        Engine engine(model, e);
        sae::Session session = make_session(second, pool, 128);
        sae::Features features(128, 32);
        std::vector<BatchRow> batch = {{model.start(), 0, 0}};
        for (const llama_token t : bench.prompts[0]) batch.push_back({t, batch.back().pos + 1, 0});
        std::set<int32_t> alone;
        engine.on_residual([&](const Residual &r) {
            session.encode({r.data, r.rows, r.d}, features.slice(0, r.rows));
            for (int64_t i = 0; i < r.rows; i++)
                if (size_t(r.batch_row[i]) + 1 == batch.size())
                    for (const sae::Active active : features.row(i)) alone.insert(active.index);
            return Then::stop;
        });
        engine.decode(batch);
        size_t common = 0;
        for (const sae::Active active : plain.at(0).features[0][1]) common += alone.count(active.index);
        expect(alone.size() == 32 && common >= 24, "a request's features are those it has alone (" + std::to_string(common) + " of 32)");
    }

    const std::vector<sae_edit> loud = {sae::add(5, 300)}, clamped = {sae::set(9, 200), sae::ablate(3)};
    const auto steered = bench.run({{1, {loud, {}}}, {3, {{}, clamped}}});
    expect(steered.at(0) == plain.at(0) && steered.at(2) == plain.at(2) && steered.at(4) == plain.at(4), "requests beside steered ones are what they are without them, bit for bit");
    expect(!(steered.at(1) == plain.at(1)) && !(steered.at(3) == plain.at(3)), "and the steered ones are others");
    const auto again = bench.run({{1, {loud, {}}}, {3, {{}, clamped}}});
    expect(again == steered, "the same again");

    const auto midway = bench.run({}, [&](Server &server, size_t step) {
        if (step == 4) server.set_edits(0, 0, loud);
        if (step == 5) server.set_edits(0, 0, {});
    });
    const Told &before = plain.at(0), &after = midway.at(0);
    const auto same_start = [&](size_t n) { return std::equal(before.written.begin(), before.written.begin() + std::ptrdiff_t(n), after.written.begin()); };
    expect(same_start(4) && !(after == before) && midway.at(1) == plain.at(1), "edits that change while a request runs act from the next step on, on that request alone");

    const auto refused = [](const std::function<void()> &f) {
        try {
            f();
        } catch (const std::invalid_argument &) {
            return true;
        }
        return false;
    };
    expect(refused([&] { bench.server().submit({bench.prompts[0], 1000, {}}); }) && refused([&] { bench.server().submit({bench.prompts[0], 0, {}}); }) &&
               refused([&] { Server(model, {}, pool, {}); }),
           "requests that do not fit, or ask for nothing, and servers without a site are refused");
}
