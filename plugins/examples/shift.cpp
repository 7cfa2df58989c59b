// A method in C++, from the header alone: trains a vector that is added to the outputs of some linear layers, and the head.
// No plain weight does that, so it cannot be merged; `eval`, `predict` and `generate` take its adapter.
//
//     c++ -std=c++17 -O2 -shared -fPIC -I plugins/sdk/include -o libshift.so plugins/examples/shift.cpp
//     sparta-cli plugin check ./libshift.so
//     sparta-cli run --plugin ./libshift.so --method shift --shift-layers q,v
#include "sparta_plugin.h"

#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

const SpartaHost *host;

SpartaBytes bytes(const std::string &text) {
    return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

// An exception must not cross to the host, but its message does.
template <typename Body> SpartaStatus guarded(SpartaCall call, Body body) {
    try {
        body();
        return SPARTA_OK;
    } catch (const std::exception &error) {
        host->error(call, bytes(error.what()));
    } catch (...) {
        host->error(call, bytes("the plugin failed for an unknown reason"));
    }
    return SPARTA_FAILED;
}

// Finds the text between `key` and the next `end`, searching from `at`. The host writes JSON without spaces; a
// real plugin would use a JSON library.
bool field(const std::string &json, size_t &at, const std::string &key, char end, std::string &value) {
    const size_t begin = json.find(key, at);
    if (begin == std::string::npos) return false;
    const size_t from = begin + key.size(), to = json.find(end, from);
    if (to == std::string::npos) return false;
    value = json.substr(from, to - from);
    at = to;
    return true;
}

SpartaStatus describe(SpartaCall call) {
    return guarded(call, [&] {
        host->result(call, bytes(R"({"name": "shift", "version": "0.1.0", "default_lr": 0.003, "mergeable": false,
            "summary": "trains a vector that is added to the outputs of linear layers",
            "options": [{"name": "shift-layers", "help": "Layers: a list of q, k, v, o, gate, up, down", "default": "q,v",
                         "kind": {"type": "text"}}]})"));
    });
}

// The roles that an option such as "q,v" names.
std::vector<std::string> roles(const std::string &layers) {
    std::vector<std::string> all;
    std::istringstream list(layers);
    for (std::string layer; std::getline(list, layer, ',');) {
        bool known = false;
        for (const char *one : {"q", "k", "v", "o", "gate", "up", "down"}) known = known || layer == one;
        if (!known)
            throw std::runtime_error("shift-layers: expected a list of q, k, v, o, gate, up and down, got `" + layers + "`");
        all.push_back(layer + "_proj");
    }
    if (all.empty()) throw std::runtime_error("shift-layers: expected at least one layer, for example q,v");
    return all;
}

SpartaStatus select(SpartaCall call, SpartaBytes request) {
    return guarded(call, [&] {
        const std::string json(reinterpret_cast<const char *>(request.data), request.len);
        std::string layers, shape, role;
        size_t at = 0;
        if (!field(json, at, "\"shift-layers\":\"", '"', layers)) throw std::runtime_error("there is no option shift-layers");
        const std::vector<std::string> chosen = roles(layers);
        std::string answer;
        for (at = 0; field(json, at, "\"shape\":[", ']', shape) && field(json, at, "\"role\":\"", '"', role);) {
            bool shifted = false;
            for (const std::string &one : chosen) shifted = shifted || role == one;
            answer += answer.empty() ? "[" : ", ";
            if (shifted)
                answer += R"({"reparam": {"tensors": [{"name": "shift", "shape": [)" + shape.substr(0, shape.find(',')) +
                          R"(], "init": "zeros"}]}})";
            else
                answer += role == "head" ? "\"dense\"" : "\"frozen\"";
        }
        host->result(call, bytes(answer.empty() ? "[]" : answer + "]"));
    });
}

uint32_t apply(SpartaCall call, const char *op, const std::vector<uint32_t> &inputs) {
    uint32_t output = 0;
    size_t count = 0;
    if (host->graph_apply(call, bytes(op), inputs.data(), inputs.size(), &output, 1, &count) != SPARTA_OK) {
        const SpartaBytes why = host->last_error(call);
        throw std::runtime_error(std::string(reinterpret_cast<const char *>(why.data), why.len));
    }
    return output;
}

// y = x w^T + shift
SpartaStatus forward(SpartaCall call, SpartaBytes, uint32_t x, uint32_t w, const uint32_t *extra, size_t extra_count,
                     uint32_t *y) {
    return guarded(call, [&] {
        if (extra_count != 1) throw std::runtime_error("expected the tensor `shift`");
        const char *linear = R"({"op": "linear", "layout": "nt", "scale": 1.0, "bias": false, "residual": false})";
        const uint32_t plain = apply(call, linear, {x, w});
        *y = apply(call, R"({"op": "add"})", {plain, extra[0]});
    });
}

// Functions that are not named are null, including those of later versions of the header.
SpartaMethod functions() {
    SpartaMethod table = {};
    table.size = sizeof table;
    table.describe = describe;
    table.select = select;
    table.forward = forward;
    return table;
}

const SpartaMethod table = functions();

const std::string id = SPARTA_METHOD_ID;
const SpartaInterface interface = {sizeof(SpartaInterface), bytes(id), &table};
const SpartaInterface *const interfaces[] = {&interface};
const SpartaPlugin plugin = {sizeof(SpartaPlugin), SPARTA_ABI_MAJOR, SPARTA_ABI_MINOR, 1, interfaces};

} // namespace

extern "C" const SpartaPlugin *sparta_plugin_entry(const SpartaHost *given) {
    host = given;
    return &plugin;
}
