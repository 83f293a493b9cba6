// A library in place of NVIDIA's libcuda, by its documentation as far as libsae calls it. Where that is silent it assumes: that
// cuGraphLaunch moves the events of a graph's external nodes at the call, as cuEventRecord does. Kernels run on the
// processor; what streams are given is put off and done later, in any order that streams, events and graphs allow, drawn from
// a seed. What a host or libsae must not do is kept as a fault and refused.
//
// Made with the kernels' folder as -I: g++ -shared -fPIC -Wl,-soname,libcuda.so libcuda.cpp
#include "stand_in/host.cpp"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <thread>

namespace fake {
using Result = int;
enum : Result {
  OK = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  NO_BINARY = 209,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  LAUNCH_FAILED = 719,
  NOT_PERMITTED = 800,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_ISOLATION = 905,
  CAPTURE_IMPLICIT = 906,
  CAPTURED_EVENT = 907,
};

struct Event {
  unsigned long long set = 0;             // how often it was set
  std::set<unsigned long long> reached;   // which of those the work has come to
  struct Capture *capture = nullptr;      // set in a capture last
  std::set<size_t> nodes;                 // behind these of its graph
};

struct Op {
  enum Kind { LAUNCH, FILL, COPY, SET, WAIT, GRAPH } kind;
  std::string kernel;
  unsigned grid[3], block[3];
  size_t shared;
  std::vector<unsigned char> bytes; // parameters, or what is copied
  unsigned char *at;
  unsigned word, width;
  size_t times;
  Event *event;
  unsigned long long ticket;
  std::shared_ptr<struct Launched> launched;
};

struct Object { // cuUserObject
  void *data;
  void (*destroy)(void *);
};
struct Node {
  Op op;
  std::set<size_t> after;
};
struct Graph {
  std::vector<Node> nodes;
  std::vector<std::shared_ptr<Object>> kept;
};
struct Exec {
  Graph graph;
  std::weak_ptr<struct Launched> latest;
};
struct Launched {
  Graph graph; // a copy: an exec may be destroyed meanwhile
  std::set<size_t> left, done;
  std::shared_ptr<Launched> before;
  bool ended() const { return left.empty(); }
};
struct Capture {
  unsigned long long id;
  int mode;
  Graph *graph;
  bool invalid = false;
};
struct Stream {
  std::deque<Op> work;
  void *context;
  bool blocking; // waits for the default stream, and it for this one
  Capture *capture = nullptr;
  std::set<size_t> tips; // nodes that the next comes behind
};

std::recursive_mutex mutex;
std::map<std::string, long long> settings = {
    {"version", 13000}, {"devices", 1}, {"major", 9}, {"minor", 0}, {"seed", 1}, {"lazy", 1},
};
std::vector<std::string> faults;
std::map<unsigned char *, size_t> blocks;
std::set<Event *> events;
std::set<Stream *> streams;
std::set<void *> modules;
std::vector<std::shared_ptr<Capture>> captures;
std::set<Graph *> graphs;
std::set<Exec *> execs;
unsigned long long made = 0, launches = 0;
char primary, foreign; // contexts
long long retained = 0;
thread_local std::vector<void *> contexts;
thread_local int mode = 0; // GLOBAL
thread_local bool in_callback = false;
uint64_t state = 0;

unsigned below(size_t bound) {
  state = state * 6364136223846793005ull + 1442695040888963407ull + settings["seed"];
  return static_cast<unsigned>((state >> 33) % bound);
}
void fault(const std::string &what) { faults.push_back(what); }

Stream *standard() {
  static Stream *stream = [] {
    auto *made = new Stream{{}, &primary, true, nullptr, {}};
    streams.insert(made);
    return made;
  }();
  return stream;
}
Stream *stream_of(void *handle) {
  Stream *stream = handle ? static_cast<Stream *>(handle) : standard();
  return streams.count(stream) ? stream : nullptr;
}

// An object goes with its last graph, on a thread of the driver's, which must not be called from there.
std::shared_ptr<Object> keep(void *data, void (*destroy)(void *)) {
  return {new Object{data, destroy}, [](Object *object) {
            std::thread([object] {
              in_callback = true;
              object->destroy(object->data);
              delete object;
            }).detach();
          }};
}

bool ready(const Op &op) {
  if (op.kind == Op::WAIT) return op.ticket == 0 || op.event->reached.count(op.ticket);
  if (op.kind != Op::GRAPH || op.launched->ended()) return true;
  if (op.launched->before && !op.launched->before->ended()) return false;
  for (size_t n : op.launched->left) {
    const Node &node = op.launched->graph.nodes[n];
    bool behind = true;
    for (size_t a : node.after) behind &= op.launched->done.count(a) > 0;
    if (behind && ready(node.op)) return true;
  }
  return false;
}

void perform(const Op &op) {
  switch (op.kind) {
  case Op::LAUNCH: {
    char message[256] = "";
    if (stand_in_launch(op.kernel.c_str(), op.grid, op.block, op.shared, op.bytes.data(), op.bytes.size(), 1 + below(1u << 30), message, sizeof message))
      fault(op.kernel + " failed: " + message);
    break;
  }
  case Op::FILL:
    for (size_t i = 0; i < op.times; ++i) std::memcpy(op.at + i * op.width, &op.word, op.width);
    break;
  case Op::COPY: std::memcpy(op.at, op.bytes.data(), op.bytes.size()); break;
  case Op::SET: op.event->reached.insert(op.ticket); break;
  default: break;
  }
}

// Does one thing at the head of a stream; false if there was nothing to do.
bool step(Stream *stream) {
  if (stream->work.empty() || !ready(stream->work.front())) return false;
  Op &op = stream->work.front();
  if (op.kind == Op::GRAPH && !op.launched->ended()) {
    Launched &launched = *op.launched;
    std::vector<size_t> able;
    for (size_t n : launched.left) {
      const Node &node = launched.graph.nodes[n];
      bool behind = true;
      for (size_t a : node.after) behind &= launched.done.count(a) > 0;
      if (behind && ready(node.op)) able.push_back(n);
    }
    const size_t n = able[below(able.size())];
    perform(launched.graph.nodes[n].op);
    launched.left.erase(n);
    launched.done.insert(n);
    if (!launched.ended()) return true;
  } else {
    perform(op);
  }
  stream->work.pop_front();
  return true;
}

// Some of what may be done now; at most so many steps.
void pump(size_t steps) {
  while (steps-- > 0) {
    std::vector<Stream *> able;
    for (Stream *stream : streams) {
      if (!stream->work.empty() && ready(stream->work.front())) able.push_back(stream);
    }
    if (able.empty()) return;
    std::sort(able.begin(), able.end());
    step(able[below(able.size())]);
  }
}
template <typename Until> bool pump_until(const Until &until) {
  while (!until()) {
    bool any = false;
    for (Stream *stream : streams) any |= !stream->work.empty() && ready(stream->work.front());
    if (!any) {
      fault("a wait that never ends");
      return false;
    }
    pump(1);
  }
  return true;
}

// Whether something is asked for by work that is not done yet, or by a graph that may still be launched.
template <typename Asks> bool needed(const Asks &asks, bool by_streams) {
  const auto by_graph = [&](const Graph &graph) {
    return std::any_of(graph.nodes.begin(), graph.nodes.end(), [&](const Node &node) { return asks(node.op); });
  };
  for (Stream *stream : streams) {
    for (const Op &op : stream->work) {
      if ((by_streams && asks(op)) || (op.kind == Op::GRAPH && by_graph(op.launched->graph))) return true;
    }
  }
  return std::any_of(graphs.begin(), graphs.end(), [&](Graph *graph) { return by_graph(*graph); }) ||
         std::any_of(execs.begin(), execs.end(), [&](Exec *exec) { return by_graph(exec->graph); });
}
bool in_use(unsigned char *at, size_t size) {
  return needed(
      [&](const Op &op) {
        if (op.at && op.at >= at && op.at < at + size) return true;
        for (size_t i = 0; op.kind == Op::LAUNCH && i + 8 <= op.bytes.size(); i += 8) {
          unsigned char *pointer;
          std::memcpy(&pointer, op.bytes.data() + i, 8);
          if (pointer >= at && pointer < at + size) return true;
        }
        return false;
      },
      true);
}

Result give(Stream *stream, Op op) {
  if (stream->capture) {
    if (stream->capture->invalid) return CAPTURE_INVALIDATED;
    Graph &graph = *stream->capture->graph;
    graph.nodes.push_back({std::move(op), stream->tips});
    stream->tips = {graph.nodes.size() - 1};
    return OK;
  }
  stream->work.push_back(std::move(op));
  if (settings["lazy"] == 0) {
    pump(1000);
  } else {
    pump(below(3));
  }
  return OK;
}

// What every call that needs a device is refused for.
Result entered() {
  if (in_callback) {
    fault("the driver was called from a callback of its own");
    return NOT_PERMITTED;
  }
  return contexts.empty() || contexts.back() != &primary ? INVALID_CONTEXT : OK;
}
// What may wait for the whole device, or reach work of captures: forbidden beside them but to those who say that they know.
Result unsafe_call() {
  if (Result refused = entered()) return refused;
  for (const auto &capture : captures) {
    if (mode == 2 || capture->mode == 2) continue;
    capture->invalid = true;
    return CAPTURE_UNSUPPORTED;
  }
  return OK;
}
Result implicit(Stream *stream) {
  if (stream != standard()) return OK;
  for (Stream *other : streams) {
    if (other->capture && other->blocking) return CAPTURE_IMPLICIT;
  }
  return OK;
}
} // namespace fake
using namespace fake;

#define LOCKED const std::lock_guard<std::recursive_mutex> guard(fake::mutex)
#define CHECK(condition)                                                                                                       \
  if (Result refused = (condition)) return refused
#define STREAM(handle)                                                                                                         \
  Stream *const stream = stream_of(handle);                                                                                    \
  if (!stream) return fault("a stream that is none"), INVALID_HANDLE;                                                          \
  CHECK(implicit(stream))
#define EVENT(handle)                                                                                                          \
  Event *const event = static_cast<Event *>(handle);                                                                           \
  if (!events.count(event)) return fault("an event that is none"), INVALID_HANDLE

extern "C" {
// For the tests.
void fake_set(const char *name, long long value) { LOCKED; settings[name] = value; }
long long fake_get(const char *name) {
  LOCKED;
  const std::string what = name;
  if (what == "blocks") return static_cast<long long>(blocks.size());
  if (what == "events") return static_cast<long long>(events.size());
  if (what == "streams") return static_cast<long long>(streams.size()) - 1;
  if (what == "modules") return static_cast<long long>(modules.size());
  if (what == "launches") return static_cast<long long>(launches);
  if (what == "contexts") return static_cast<long long>(contexts.size());
  if (what == "retained") return retained;
  if (what == "mode") return mode;
  return settings[what];
}
const char *fake_fault() {
  LOCKED;
  static std::string text;
  text.clear();
  for (const auto &one : faults) text += one + "\n";
  faults.clear();
  return text.c_str();
}
void fake_context(int on) { // as a host's thread that works on the device has it
  on ? contexts.push_back(&primary) : contexts.pop_back();
}
void *fake_foreign_stream() {
  LOCKED;
  auto *made = new Stream{{}, &foreign, false, nullptr, {}};
  streams.insert(made);
  return made;
}

Result cuInit(unsigned) { return static_cast<Result>(fake_get("init")); }
Result cuDriverGetVersion(int *out) { return *out = static_cast<int>(fake_get("version")), OK; }
Result cuGetErrorName(Result code, const char **out) {
  *out = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_FAKE";
  return OK;
}
Result cuGetErrorString(Result, const char **out) { return *out = "what the fake says", OK; }
Result cuDeviceGetCount(int *out) { return *out = static_cast<int>(fake_get("devices")), OK; }
Result cuDeviceGet(int *out, int ordinal) { return *out = ordinal, OK; }
Result cuDeviceGetName(char *out, int size, int) { return std::snprintf(out, size, "a fake"), OK; }
Result cuDeviceGetAttribute(int *out, int which, int) {
  *out = static_cast<int>(which == 75 ? fake_get("major") : which == 76 ? fake_get("minor") : 3);
  return OK;
}
Result cuDevicePrimaryCtxRetain(void **out, int) { LOCKED; ++retained; return *out = &primary, OK; }
Result cuDevicePrimaryCtxRelease_v2(int) { LOCKED; --retained; return OK; }
Result cuCtxPushCurrent_v2(void *context) {
  if (in_callback) return entered();
  return contexts.push_back(context), OK;
}
Result cuCtxPopCurrent_v2(void **out) {
  if (contexts.empty()) return INVALID_CONTEXT;
  *out = contexts.back();
  return contexts.pop_back(), OK;
}
Result cuThreadExchangeStreamCaptureMode(int *exchanged) { return std::swap(mode, *exchanged), OK; }

Result cuModuleLoadData(void **out, const void *image) {
  LOCKED;
  CHECK(unsafe_call());
  const bool binary = std::memcmp(image, "\177ELF", 4) == 0;
  if (settings[binary ? "refuse_binaries" : "refuse_ptx"]) return NO_BINARY;
  modules.insert(*out = new char(binary));
  return OK;
}
Result cuModuleUnload(void *module) {
  LOCKED;
  CHECK(unsafe_call());
  return modules.erase(module) ? OK : INVALID_HANDLE;
}
Result cuModuleGetFunction(void **out, void *, const char *name) {
  for (const Entry &entry : ENTRIES) {
    if (std::strcmp(entry.symbol, name) == 0) return *out = const_cast<Entry *>(&entry), OK;
  }
  return NOT_FOUND;
}
Result cuFuncSetAttribute(void *, int, int) { return static_cast<Result>(fake_get("refuse_shared")); }

Result cuMemAlloc_v2(void **out, size_t bytes) {
  LOCKED;
  CHECK(unsafe_call());
  if (bytes == 0) return INVALID_VALUE;
  if (settings["memory"] && static_cast<long long>(bytes) > settings["memory"]) return OUT_OF_MEMORY;
  auto *block = static_cast<unsigned char *>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  std::memset(block, 0xff, bytes);
  blocks[block] = bytes;
  return *out = block, OK;
}
Result cuMemFree_v2(void *at) {
  LOCKED;
  CHECK(unsafe_call());
  auto *block = static_cast<unsigned char *>(at);
  if (!blocks.count(block)) return fault("memory that is none was freed"), INVALID_VALUE;
  if (in_use(block, blocks[block])) fault("memory was freed that work still needs");
  std::memset(block, 0xff, blocks[block]);
  blocks.erase(block); // the pages stay: who reads them finds no numbers
  return OK;
}
Result cuMemHostAlloc(void **out, size_t bytes, unsigned) { return cuMemAlloc_v2(out, bytes); }
Result cuMemHostGetDevicePointer_v2(void **out, void *host, unsigned) { return *out = host, OK; }
Result cuMemFreeHost(void *at) { return cuMemFree_v2(at); }
Result cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *handle) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  Op op = {};
  op.kind = Op::COPY;
  op.at = static_cast<unsigned char *>(to);
  op.bytes.assign(static_cast<const unsigned char *>(from), static_cast<const unsigned char *>(from) + bytes);
  return give(stream, op);
}
// What hosts copy; libsae does not.
Result cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) { return std::memcpy(to, from, bytes), entered(); }
Result cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) {
  LOCKED;
  CHECK(entered());
  if (!captures.empty()) return CAPTURE_IMPLICIT;
  pump_until([] { return standard()->work.empty(); });
  return std::memcpy(to, from, bytes), OK;
}
Result cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) { return cuMemcpyHtoDAsync_v2(to, from, bytes, stream); }
Result cuMemGetInfo_v2(size_t *free, size_t *total) {
  LOCKED;
  *total = size_t(1) << 40;
  *free = *total;
  for (const auto &block : blocks) *free -= block.second;
  return OK;
}
Result cuEventElapsedTime(float *out, void *, void *) { return *out = 1, OK; }

static Result fill(void *to, unsigned word, unsigned width, size_t times, void *handle) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  Op op = {};
  op.kind = Op::FILL;
  op.at = static_cast<unsigned char *>(to);
  op.word = word;
  op.width = width;
  op.times = times;
  return give(stream, op);
}
Result cuMemsetD8Async(void *to, unsigned char byte, size_t times, void *stream) { return fill(to, byte, 1, times, stream); }
Result cuMemsetD32Async(void *to, unsigned word, size_t times, void *stream) { return fill(to, word, 4, times, stream); }

Result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned block, unsigned block_y, unsigned block_z, unsigned shared,
                      void *handle, void **params, void **) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  if (x == 0 || y == 0 || z == 0 || block == 0 || y > 65535 || shared > 227 << 10) return INVALID_VALUE;
  if (settings["break_launch"] && --settings["break_launch"] == 0) return LAUNCH_FAILED;
  const auto *entry = static_cast<const Entry *>(function);
  const auto *bytes = static_cast<const unsigned char *>(params[0]);
  Op op = {};
  op.kind = Op::LAUNCH;
  op.kernel = entry->symbol;
  op.grid[0] = x, op.grid[1] = y, op.grid[2] = z;
  op.block[0] = block, op.block[1] = block_y, op.block[2] = block_z;
  op.shared = shared;
  op.bytes.assign(bytes, bytes + entry->size);
  ++launches;
  return give(stream, op);
}

Result cuStreamCreate(void **out, unsigned flags) {
  LOCKED;
  CHECK(entered());
  auto *made = new Stream{{}, &primary, flags != 1, nullptr, {}};
  streams.insert(made);
  return *out = made, OK;
}
Result cuStreamDestroy_v2(void *handle) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  pump_until([&] { return stream->work.empty(); }); // a real one lets the work end by itself
  streams.erase(stream);
  delete stream;
  return OK;
}
Result cuStreamGetCtx(void *handle, void **out) {
  LOCKED;
  CHECK(entered());
  Stream *const stream = stream_of(handle);
  return stream ? (*out = stream->context, OK) : INVALID_HANDLE;
}
Result cuStreamSynchronize(void *handle) {
  LOCKED;
  CHECK(unsafe_call());
  STREAM(handle);
  if (stream->capture) return stream->capture->invalid = true, CAPTURE_UNSUPPORTED;
  pump_until([&] { return stream->work.empty(); });
  return OK;
}
Result cuStreamQuery(void *handle) {
  LOCKED;
  CHECK(unsafe_call());
  STREAM(handle);
  if (stream->capture) return stream->capture->invalid = true, CAPTURE_UNSUPPORTED;
  if (settings["broken"]) return LAUNCH_FAILED;
  return stream->work.empty() ? OK : NOT_READY;
}
Result cuStreamWaitEvent(void *handle, void *mark, unsigned flags) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  EVENT(mark);
  Op op = {};
  op.kind = Op::WAIT;
  op.event = event;
  op.ticket = event->set;
  if (flags == 1) return stream->capture ? give(stream, op) : INVALID_VALUE;
  if (stream->capture && event->capture != stream->capture) return stream->capture->invalid = true, CAPTURE_ISOLATION;
  if (!stream->capture && event->capture) return fault("a stream was drawn into a capture"), CAPTURE_ISOLATION;
  if (stream->capture) return stream->tips.insert(event->nodes.begin(), event->nodes.end()), OK;
  return give(stream, op);
}
Result cuEventCreate(void **out, unsigned) {
  LOCKED;
  CHECK(entered());
  auto *event = new Event;
  events.insert(event);
  return *out = event, OK;
}
Result cuEventDestroy_v2(void *mark) {
  LOCKED;
  CHECK(entered());
  EVENT(mark);
  if (needed([&](const Op &op) { return op.event == event; }, false)) fault("an event was destroyed that a graph needs");
  events.erase(event); // the memory stays: work may still set it
  return OK;
}
Result cuEventRecordWithFlags(void *mark, void *handle, unsigned flags) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  EVENT(mark);
  Op op = {};
  op.kind = Op::SET;
  op.event = event;
  if (flags == 1) return stream->capture ? give(stream, op) : INVALID_VALUE;
  if (stream->capture) {
    if (stream->capture->invalid) return CAPTURE_INVALIDATED;
    event->capture = stream->capture;
    event->nodes = stream->tips;
    return OK;
  }
  event->capture = nullptr;
  op.ticket = ++event->set;
  return give(stream, op);
}
Result cuEventRecord(void *mark, void *stream) { return cuEventRecordWithFlags(mark, stream, 0); }
Result cuEventSynchronize(void *mark) {
  LOCKED;
  CHECK(unsafe_call());
  EVENT(mark);
  if (event->capture) return CAPTURED_EVENT;
  pump_until([&] { return event->set == 0 || event->reached.count(event->set); });
  return OK;
}

// Captures and graphs.
Result cuStreamBeginCapture_v2(void *handle, int how) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  captures.push_back(std::shared_ptr<Capture>(new Capture{++made, how, new Graph}));
  graphs.insert(captures.back()->graph);
  stream->capture = captures.back().get();
  stream->tips.clear();
  return OK;
}
Result fake_fork(void *from, void *to) { // what an event of the host's does
  LOCKED;
  auto *const a = static_cast<Stream *>(from), *const b = static_cast<Stream *>(to);
  b->capture = a->capture;
  b->tips.insert(a->tips.begin(), a->tips.end());
  return OK;
}
Result cuStreamEndCapture(void *handle, void **out) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  Capture *const capture = stream->capture;
  if (!capture) return INVALID_VALUE;
  for (Stream *other : streams) {
    if (other->capture == capture) other->capture = nullptr, other->tips.clear();
  }
  for (Event *event : events) {
    if (event->capture == capture) event->capture = nullptr;
  }
  Graph *const graph = capture->graph;
  const bool invalid = capture->invalid;
  for (size_t i = 0; i < captures.size(); ++i) {
    if (captures[i].get() == capture) captures.erase(captures.begin() + static_cast<long>(i)), i = captures.size();
  }
  if (invalid) return graphs.erase(graph), delete graph, *out = nullptr, CAPTURE_INVALIDATED;
  return *out = graph, OK;
}
static Result capture_info(void *handle, int *status, unsigned long long *id, void **graph) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
  if (stream->capture) *id = stream->capture->id, *graph = stream->capture->graph;
  return OK;
}
Result cuStreamGetCaptureInfo_v2(void *stream, int *status, unsigned long long *id, void **graph, const void **, size_t *) {
  return capture_info(stream, status, id, graph);
}
#ifndef OLD
Result cuStreamGetCaptureInfo_v3(void *stream, int *status, unsigned long long *id, void **graph, const void **, const void **, size_t *) {
  return capture_info(stream, status, id, graph);
}
#endif
Result cuUserObjectCreate(void **out, void *data, void (*destroy)(void *), unsigned, unsigned) {
  LOCKED;
  CHECK(entered());
  if (settings["refuse_objects"]) return OUT_OF_MEMORY;
  return *out = new std::shared_ptr<Object>(keep(data, destroy)), OK;
}
Result cuUserObjectRelease(void *object, unsigned) {
  delete static_cast<std::shared_ptr<Object> *>(object);
  return OK;
}
Result cuGraphRetainUserObject(void *graph, void *object, unsigned, unsigned flags) {
  LOCKED;
  CHECK(entered());
  if (settings["refuse_retains"]) return OUT_OF_MEMORY;
  auto *const given = static_cast<std::shared_ptr<Object> *>(object);
  static_cast<Graph *>(graph)->kept.push_back(*given);
  if (flags == 1) delete given;
  return OK;
}
Result cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long) {
  LOCKED;
  auto *const exec = new Exec{*static_cast<Graph *>(graph), {}};
  execs.insert(exec);
  return *out = exec, OK;
}
Result cuGraphLaunch(void *exec, void *handle) {
  LOCKED;
  CHECK(entered());
  STREAM(handle);
  auto *const launched_of = static_cast<Exec *>(exec);
  Op op = {};
  op.kind = Op::GRAPH;
  op.launched = std::make_shared<Launched>();
  op.launched->graph = launched_of->graph;
  op.launched->before = launched_of->latest.lock();
  launched_of->latest = op.launched;
  for (size_t n = 0; n < op.launched->graph.nodes.size(); ++n) {
    op.launched->left.insert(n);
    Op &node = op.launched->graph.nodes[n].op;
    if (node.kind == Op::WAIT) node.ticket = node.event->set;
  }
  for (Node &node : op.launched->graph.nodes) {
    if (node.op.kind == Op::SET) node.op.ticket = ++node.op.event->set;
  }
  return give(stream, op);
}
Result cuGraphExecDestroy(void *exec) {
  LOCKED;
  execs.erase(static_cast<Exec *>(exec));
  return delete static_cast<Exec *>(exec), OK;
}
Result cuGraphDestroy(void *graph) {
  LOCKED;
  graphs.erase(static_cast<Graph *>(graph));
  return delete static_cast<Graph *>(graph), OK;
}
} // extern "C"
