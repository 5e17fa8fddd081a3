#include "launch/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <map>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace wukong {
namespace {

constexpr int kNodesMax = 100'000;
constexpr size_t kDepthMax = 100;

int LineOf(const YAML::Mark& mark) { return mark.is_null() ? 1 : mark.line + 1; }

// Thrown through yaml-cpp's parser, which knows no other way to stop, and caught in ParseYaml.
struct Refusal {
  YamlProblem problem;
};

int CountNodes(const YamlNode& node) {
  int count = 1;
  for (const YamlNode& item : node.items) {
    count += CountNodes(item);
  }
  return count;
}

class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(YamlNode* root) : root_(root) {}

  // Keys that are not plain values; at most the first.
  const std::vector<YamlProblem>& key_problems() const { return key_problems_; }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    AddLeaf(YamlNode::Kind::kNull, "", mark, anchor);
  }

  void OnScalar(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor, const std::string& value) override {
    AddLeaf(YamlNode::Kind::kScalar, value, mark, anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) {
      throw Refusal{{LineOf(mark), "an alias stands inside the value that it names"}};
    }
    Count(mark, CountNodes(found->second));
    YamlNode copy = found->second;
    copy.line = LineOf(mark);
    Add(std::move(copy));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(YamlNode::Kind::kList, mark, anchor);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(YamlNode::Kind::kMap, mark, anchor);
  }
  void OnMapEnd() override { Close(); }

 private:
  struct OpenNode {
    YamlNode node;
    YAML::anchor_t anchor;
    // In a map: whether the next event is a value, whose key stands at `key_line`.
    bool has_key = false;
    int key_line = 0;
  };

  void Count(const YAML::Mark& mark, int nodes) {
    nodes_ += nodes;
    if (nodes_ > kNodesMax) {
      throw Refusal{{LineOf(mark), absl::StrCat("the file has too many values (expected at most ", kNodesMax, ")")}};
    }
  }

  void AddLeaf(YamlNode::Kind kind, const std::string& value, const YAML::Mark& mark, YAML::anchor_t anchor) {
    Count(mark, 1);
    YamlNode node;
    node.kind = kind;
    node.scalar = value;
    node.line = LineOf(mark);
    if (anchor != YAML::NullAnchor) {
      anchors_[anchor] = node;
    }
    Add(std::move(node));
  }

  void Open(YamlNode::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
    Count(mark, 1);
    if (open_.size() >= kDepthMax) {
      throw Refusal{
          {LineOf(mark), absl::StrCat("values are nested too deep (expected at most ", kDepthMax, " levels)")}};
    }
    OpenNode opened;
    opened.node.kind = kind;
    opened.node.line = LineOf(mark);
    opened.anchor = anchor;
    open_.push_back(std::move(opened));
  }

  void Close() {
    OpenNode closed = std::move(open_.back());
    open_.pop_back();
    if (closed.anchor != YAML::NullAnchor) {
      anchors_[closed.anchor] = closed.node;
    }
    Add(std::move(closed.node));
  }

  bool ExpectsKey() const {
    return !open_.empty() && open_.back().node.kind == YamlNode::Kind::kMap && !open_.back().has_key;
  }

  void Add(YamlNode node) {
    if (open_.empty()) {
      *root_ = std::move(node);
      return;
    }
    OpenNode& parent = open_.back();
    if (ExpectsKey()) {
      // Not thrown: for a list that is not closed, yaml-cpp reports a key and only then what is really wrong.
      if (node.kind != YamlNode::Kind::kScalar && key_problems_.empty()) {
        key_problems_.push_back({node.line, "a key must be a plain name"});
      }
      parent.node.keys.push_back(node.scalar);
      parent.has_key = true;
      parent.key_line = node.line;
      return;
    }
    if (parent.has_key) {
      node.line = parent.key_line;
      parent.has_key = false;
    }
    parent.node.items.push_back(std::move(node));
  }

  YamlNode* const root_;
  std::vector<YamlProblem> key_problems_;
  std::vector<OpenNode> open_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
  int nodes_ = 0;
};

// yaml-cpp's words for a tab are not of much use, and it lets some pass.
std::vector<YamlProblem> FindTabs(const std::string& text) {
  std::vector<YamlProblem> problems;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const size_t end = line.find_first_not_of(" \t\r");
    if (end != std::string::npos && line[end] != '#' && line.find('\t') < end) {
      problems.push_back({number, "a tab is used as indentation (expected spaces only)"});
    }
  }
  return problems;
}

}  // namespace

const YamlNode* YamlNode::Find(const std::string& key) const {
  for (size_t i = keys.size(); i-- > 0;) {
    if (keys[i] == key) {
      return &items[i];
    }
  }
  return nullptr;
}

YamlNode* YamlNode::Find(const std::string& key) {
  return const_cast<YamlNode*>(static_cast<const YamlNode*>(this)->Find(key));
}

std::vector<YamlProblem> ParseYaml(const std::string& text, YamlNode* root) {
  std::vector<YamlProblem> tabs = FindTabs(text);
  if (!tabs.empty()) {
    return tabs;
  }
  *root = YamlNode();
  try {
    std::istringstream input(text);
    YAML::Parser parser(input);
    TreeBuilder builder(root);
    parser.HandleNextDocument(builder);
    if (!builder.key_problems().empty()) {
      return builder.key_problems();
    }
    YamlNode second;
    TreeBuilder second_builder(&second);
    if (parser.HandleNextDocument(second_builder)) {
      return {{second.line, "a second document begins (expected one job per file)"}};
    }
  } catch (const Refusal& refusal) {
    return {refusal.problem};
  } catch (const YAML::Exception& error) {
    return {{LineOf(error.mark), absl::StrCat("not valid YAML: ", error.msg)}};
  }
  return {};
}

}  // namespace wukong
