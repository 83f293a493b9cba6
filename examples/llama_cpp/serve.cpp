#include "serve.hpp"

#include <algorithm>
#include <stdexcept>

namespace {

EngineOptions engine_options(const std::vector<Site> &sites, const Server::Options &o) {
    if (sites.empty()) throw std::invalid_argument("a server without a site: give at least one");
    EngineOptions e;
    e.layer = sites.front().layer;
    for (size_t i = 1; i < sites.size(); i++) e.more_layers.push_back(sites[i].layer);
    e.n_ctx_seq = o.positions;
    e.n_seqs = o.sequences;
    e.n_batch = e.n_ubatch = uint32_t(o.prompt_rows + o.sequences);
    e.n_threads = o.threads;
    return e;
}

sae::Session session_of(const Site &site, const sae::Pool &pool, const Server::Options &o) {
    sae_session_options options = SAE_SESSION_OPTIONS_INIT;
    options.max_tokens = int64_t(o.prompt_rows + o.sequences);
    options.slots = o.sequences;  // each sequence has its own
    options.pool = pool.get();
    return sae::Session::create(*site.sae, &options);
}

}  // namespace

Server::Server(const Model &model, const std::vector<Site> &sites, const sae::Pool &pool, const Options &options)
    : model_(model), options_(options), slot_(options.prompt_rows + options.sequences), running_(options.sequences), engine_(model, engine_options(sites, options)) {
    for (const Site &site : sites) {
        const sae_info info = site.sae->info();
        readers_.push_back({site, session_of(site, pool, options), sae::Features(int64_t(slot_.size()), info.k ? info.k : 64, info.row_state_width)});
    }
    engine_.on_residual([this](const Residual &r) { return look(r); });
}

int64_t Server::submit(Request request) {
    const size_t length = 1 + request.prompt.size() + request.tokens;
    if (request.tokens == 0 || length > options_.positions)
        throw std::invalid_argument("a request of " + std::to_string(request.prompt.size()) + " tokens that asks for " + std::to_string(request.tokens) + ": at least 1, and " +
                                    std::to_string(options_.positions) + " with the start token, fit");
    request.edits.resize(readers_.size());
    waiting_.emplace_back(next_, std::move(request));
    return next_++;
}

void Server::set_edits(int64_t number, size_t site, std::vector<sae_edit> edits) {
    for (auto &[waiting, request] : waiting_)
        if (waiting == number) request.edits.at(site) = std::move(edits);
    for (size_t s = 0; s < running_.size(); s++) {
        if (!running_[s] || running_[s]->number != number) continue;
        running_[s]->request.edits.at(site) = std::move(edits);
        apply(s, site);
    }
}

void Server::apply(size_t sequence, size_t site) { readers_[site].session.set_edits(int32_t(sequence), running_[sequence]->request.edits[site]); }

void Server::admit() {
    for (size_t s = 0; s < running_.size() && !waiting_.empty(); s++) {
        if (running_[s]) continue;
        auto started = std::make_unique<Running>();
        started->number = waiting_.front().first;
        started->request = std::move(waiting_.front().second);
        waiting_.pop_front();
        started->sampler = make_sampler(model_, started->request.sampling);
        started->tokens = started->request.prompt;
        started->tokens.insert(started->tokens.begin(), model_.start());
        running_[s] = std::move(started);
        for (size_t site = 0; site < readers_.size(); site++) apply(s, site);
    }
}

bool Server::step(const std::function<void(const Step &)> &told) {
    admit();
    // One row of each sequence that writes, and as much of the prompts as a step may hold.
    std::vector<BatchRow> batch;
    size_t room = options_.prompt_rows;
    for (size_t s = 0; s < running_.size(); s++) {
        if (!running_[s]) continue;
        Running &r = *running_[s];
        size_t n = r.tokens.size() - r.read;
        if (n > 1) n = std::min(n, room), room -= n;
        for (; n > 0; n--, r.read++) batch.push_back({r.tokens[r.read], llama_pos(r.read), llama_seq_id(s), r.read + 1 == r.tokens.size()});
    }
    if (batch.empty()) return false;
    seen_.assign(batch.size(), std::vector<std::vector<sae::Active>>(readers_.size()));
    engine_.decode(batch);

    for (size_t i = 0; i < batch.size(); i++) {
        if (!batch[i].wants_logits) continue;
        const auto s = size_t(batch[i].seq);
        Running &r = *running_[s];
        const llama_token written = llama_sampler_sample(r.sampler.get(), engine_.get(), int32_t(i));
        r.tokens.push_back(written);
        const bool last = ++r.written == r.request.tokens || model_.ends_text(written);
        told({r.number, batch[i].token, written, seen_[i], last});
        if (!last) continue;
        llama_memory_seq_rm(llama_get_memory(engine_.get()), batch[i].seq, -1, -1);
        for (Reader &reader : readers_) reader.session.set_edits(int32_t(s), {});
        running_[s].reset();
    }
    return true;
}

Then Server::look(const Residual &r) {
    for (size_t site = 0; site < readers_.size(); site++) {
        Reader &reader = readers_[site];
        if (reader.site.layer != r.layer) continue;
        bool steered = false;
        for (int64_t i = 0; i < r.rows; i++) {
            const BatchRow &row = r.at(i);
            const bool edited = row.pos > 0 && !running_[size_t(row.seq)]->request.edits[site].empty();  // the first token is the attention's sink
            slot_[size_t(i)] = edited ? int32_t(row.seq) : -1;
            steered |= edited;
        }
        reader.session.encode({r.data, r.rows, r.d}, reader.features.slice(0, r.rows));
        for (int64_t i = 0; i < r.rows; i++)
            if (r.at(i).wants_logits)
                for (const sae::Active active : reader.features.row(i)) seen_[size_t(r.batch_row[i])][site].push_back(active);
        if (!steered) continue;
        sae::Steering how;
        how.row_slot = {slot_.data(), r.rows};
        how.known = std::as_const(reader.features).slice(0, r.rows);
        reader.session.steer({r.data, r.rows, r.d}, how, {r.data, r.rows, r.d});
    }
    return Then::go_on;
}
