// The rules for the script of the home page (extract.mjs writes it to page.js) and for
// the tests.  Nothing here is about taste in spaces: one idea a line, and no surprise.

const RULES = {
  "complexity": ["error", 10],
  "consistent-return": "error",
  "curly": ["error", "multi-line"],
  "default-case": "error",
  "eqeqeq": "error",
  "max-depth": ["error", 3],
  "max-len": ["error", { code: 88, ignorePattern: "^\\s*import " }],
  "max-lines-per-function": ["error", { max: 30, skipComments: true }],
  "max-params": ["error", 5],
  "max-statements-per-line": ["error", { max: 1 }],
  "no-cond-assign": "error",
  "no-const-assign": "error",
  "no-dupe-keys": "error",
  "no-else-return": "error",
  "no-empty": "error",
  "no-implicit-globals": "off",  // a page's functions are its globals
  "no-multi-assign": "error",
  "no-nested-ternary": "error",
  "no-param-reassign": "error",
  "no-redeclare": "error",
  "no-return-assign": "error",
  "no-self-compare": "error",
  "no-sequences": "error",
  "no-shadow": "error",
  "no-undef": "error",
  "no-unreachable": "error",
  "no-unused-expressions": "error",
  "no-unused-vars": "error",
  "no-use-before-define": ["error", { functions: false, classes: true }],
  "no-useless-concat": "error",
  "no-useless-return": "error",
  "no-var": "error",
  "one-var": ["error", "never"],
  "prefer-const": "error",
  "prefer-rest-params": "error",
  "quotes": ["error", "double", { avoidEscape: true, allowTemplateLiterals: true }],
  "semi": ["error", "always"],
};

const readOnly = (names) =>
  Object.fromEntries(names.split(" ").map((name) => [name, "readonly"]));

const BROWSER = readOnly("AbortController Node URL addEventListener clearTimeout"
  + " document fetch getSelection location setInterval setTimeout");
// The tests of the page hand functions over to the browser.
const NODE = readOnly("Event MutationObserver URL clearInterval console"
  + " getComputedStyle getSelection process setTimeout window");

export default [
  {
    files: ["page.js"],
    languageOptions: { sourceType: "script", globals: BROWSER },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: RULES,
  },
  {
    files: ["**/*.mjs"],
    languageOptions: { sourceType: "module", globals: { ...NODE, ...BROWSER } },
    rules: { ...RULES, "max-lines-per-function": "off" },
  },
];
