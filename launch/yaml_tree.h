// A YAML document as a tree in which every value knows the line it stands on.
#ifndef WUKONG_LAUNCH_YAML_TREE_H_
#define WUKONG_LAUNCH_YAML_TREE_H_

#include <string>
#include <vector>

namespace wukong {

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };

  Kind kind = Kind::kNull;
  std::string scalar;
  // Of a list, or the values of a map, in the order of the file.
  std::vector<YamlNode> items;
  // Of a map, parallel to `items`. A key may be there twice: that is for the reader to refuse.
  std::vector<std::string> keys;
  // Counted from 1; for a value in a map, the line of its key.
  int line = 1;
  // The "key.path=value" of a --set, when the value comes from one and not from the file.
  std::string override_text;

  // The last value of `key` in a map, or null.
  const YamlNode* Find(const std::string& key) const;
  YamlNode* Find(const std::string& key);
};

struct YamlProblem {
  int line = 1;
  std::string text;
};

// Parses one document. Anchors and aliases are followed; tags are ignored. Returns what is wrong, and nothing when all
// is well: syntax, tabs as indentation, keys that are not plain values, a second document, or more than a job can need
// (100,000 values, 100 levels).
std::vector<YamlProblem> ParseYaml(const std::string& text, YamlNode* root);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_YAML_TREE_H_
