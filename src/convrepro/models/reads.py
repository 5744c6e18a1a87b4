"""Which layers a model reads the weight of, instead of calling them, found in the source of its forward methods.

The source is followed with the modules of the model in the place of values: through attributes, loops over containers,
local names, methods, properties and functions that get a module. No forward method is executed, so that no input is
needed, and every branch is looked at.
"""

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

READ = ("weight", "bias")
Modules = frozenset[nn.Module]
NONE: Modules = frozenset()
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: Functions that hand on what they iterate over.
ITERATING = {"enumerate", "iter", "list", "next", "reversed", "sorted", "tuple", "zip"}
#: Methods of modules that hand on their children.
CHILDREN = {"children", "named_children", "values", "items", "modules", "named_modules"}


class Reads:
    """What the forward methods of `model`, with the methods and functions that these call, do with its modules.

    readers: for each layer whose weight or bias is read, the name of the class that reads it. A layer that reads its
    own is not meant. uses: for each module the places in the source that name it as an attribute.
    """

    def __init__(self, model: nn.Module) -> None:
        self.readers: dict[nn.Module, str] = {}
        self.uses: dict[nn.Module, set[ast.AST]] = {}
        self._returned: dict[object, Modules] = {}
        for module in model.modules():
            if module._modules and not isinstance(module, nn.Conv2d | nn.Linear):
                for forward in _forwards(module):
                    self.call(forward, [frozenset({module})], {}, type(module).__name__)

    def call(
        self, function: FunctionType, arguments: Iterable[Modules], keywords: Mapping[str, Modules], reader: str
    ) -> Modules:
        """Follows a call of `function` with these modules as arguments; returns the modules that it returns."""
        tree = _tree(function)
        given = list(arguments)
        if tree is None:
            self._without_source(function, given, reader)
            return NONE
        names = [argument.arg for argument in (*tree.args.posonlyargs, *tree.args.args)]
        known = {**dict(zip(names, given, strict=False)), **keywords}
        key = (function, frozenset(known.items()))
        if key not in self._returned:
            self._returned[key] = NONE  # what a recursive call returns
            frame = _Frame(self, function, known, names[0] if names else "", reader)
            for _ in range(2):  # a name that a loop sets at its end is known at its start
                for statement in tree.body:
                    frame.visit(statement)
            self._returned[key] = frame.returned
        return self._returned[key]

    def _without_source(self, function: FunctionType, given: Iterable[Modules], reader: str) -> None:
        """Takes every layer whose name the compiled function mentions, if that mentions a weight at all."""
        mentioned = function.__code__.co_names
        if not set(READ) & set(mentioned):
            return
        for name, layer in (pair for modules in given for m in modules for pair in m.named_modules() if pair[0]):
            if name.rpartition(".")[2] in mentioned:
                self.readers.setdefault(layer, reader)


class _Frame(ast.NodeVisitor):
    """One call of one function. `visit` returns the modules that an expression may be."""

    def __init__(
        self, reads: Reads, function: FunctionType, known: Mapping[str, Modules], first: str, reader: str
    ) -> None:
        self.reads, self.function, self.reader, self.first = reads, function, reader, first
        self.known = dict(known)
        self.returned = NONE

    def visit(self, node: ast.AST) -> Modules:
        found = super().visit(node)
        return found if isinstance(found, frozenset) else NONE

    def generic_visit(self, node: ast.AST) -> Modules:
        """What is made of several values may be each of them: a tuple, a condition, an assignment expression."""
        found = [self.visit(child) for child in ast.iter_child_nodes(node)]
        whole = isinstance(node, ast.Tuple | ast.List | ast.IfExp | ast.BoolOp | ast.Starred | ast.keyword)
        return frozenset().union(*found) if whole else NONE

    def visit_Name(self, node: ast.Name) -> Modules:
        return self.known.get(node.id, NONE)

    def visit_Attribute(self, node: ast.Attribute) -> Modules:
        return self._attribute(self.visit(node.value), node.attr, node)

    def visit_Subscript(self, node: ast.Subscript) -> Modules:
        value = self.visit(node.value)
        self.visit(node.slice)
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        found: set[nn.Module] = set()
        for module in value:
            children = list(module.children()) if isinstance(module, nn.Sequential | nn.ModuleList) else []
            if isinstance(index, int) and -len(children) <= index < len(children):
                found.add(children[index])
            elif isinstance(index, str) and isinstance(module, nn.ModuleDict) and index in module:
                found.add(module[index])
            else:
                found |= _elements(module)
        return frozenset(found)

    def visit_Call(self, node: ast.Call) -> Modules:
        arguments = [self.visit(argument) for argument in node.args]
        keywords = {word.arg or "**": self.visit(word.value) for word in node.keywords}
        called = node.func
        if isinstance(called, ast.Name) and called.id == "getattr" and len(node.args) > 1:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            if isinstance(name, str):
                return self._attribute(arguments[0], name, node)
            return frozenset(child for module in arguments[0] for child in module.children())
        if isinstance(called, ast.Name) and called.id in ITERATING:
            return frozenset().union(*(self._items(argument) for argument in node.args))
        if isinstance(called, ast.Attribute):
            returned = [
                self.reads.call(method, [frozenset({module}), *arguments], keywords, self.reader)
                for module, method in self._methods(called)
            ]
            if returned:
                return frozenset().union(*returned)
        carried = any((*arguments, *keywords.values()))
        if carried and (function := self._global(called)):
            return self.reads.call(function, arguments, keywords, self.reader)
        for module in self.visit(called):
            if carried and not isinstance(module, nn.Conv2d | nn.Linear):
                for forward in _forwards(module):
                    self.reads.call(forward, [frozenset({module}), *arguments], keywords, self.reader)
        return NONE

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.visit(node.value)
        parts = node.value.elts if isinstance(node.value, ast.Tuple) else []
        for target in node.targets:
            names = target.elts if isinstance(target, ast.Tuple) else []
            if names and len(names) == len(parts):
                for name, part in zip(names, parts, strict=True):
                    self._bind(name, self._unpacked(name, self.visit(part)))
            else:
                self._bind(target, self._unpacked(target, value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._bind(node.target, self.visit(node.value))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> Modules:
        value = self.visit(node.value)
        self._bind(node.target, value)
        return value

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, self._items(node.iter))
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.returned |= self.visit(node.value)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, self._items(node.iter))
        for condition in node.ifs:
            self.visit(condition)

    def visit_ListComp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> Modules:
        for generator in node.generators:
            self.visit(generator)
        return self.visit(node.elt)

    visit_GeneratorExp = visit_SetComp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> Modules:
        for generator in node.generators:
            self.visit(generator)
        return self.visit(node.key) | self.visit(node.value)

    def _bind(self, target: ast.expr, value: Modules) -> None:
        """A name may be all that it is set to anywhere in the function; a weight is only set, not read, by a store."""
        if isinstance(target, ast.Name):
            self.known[target.id] = self.known.get(target.id, NONE) | value
        elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
            for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target.value]:
                self._bind(part, value)
        else:
            self.visit(target)

    def _unpacked(self, target: ast.expr, value: Modules) -> Modules:
        """What the names of `target` may be: where there are several, the elements of the value."""
        if isinstance(target, ast.Tuple | ast.List):
            return value | {element for module in value for element in _elements(module)}
        return value

    def _items(self, node: ast.expr) -> Modules:
        """What a loop over the expression goes through."""
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ITERATING:
            return self.visit(node)
        if isinstance(called, ast.Attribute) and called.attr in CHILDREN:
            deep = called.attr.endswith("modules")
            return frozenset(c for m in self.visit(called.value) for c in (m.modules() if deep else m.children()))
        return frozenset(element for module in self.visit(node) for element in _elements(module))

    def _attribute(self, modules: Modules, name: str, node: ast.AST) -> Modules:
        found: set[nn.Module] = set()
        for module in modules:
            if name in READ and isinstance(module, nn.Conv2d | nn.Linear):
                self.reads.readers.setdefault(module, self.reader)
            held = {**vars(module), **module._modules}.get(name)
            method = inspect.getattr_static(type(module), name, None)
            if isinstance(method, property) and isinstance(method.fget, FunctionType):
                found |= self.reads.call(method.fget, [frozenset({module})], {}, self.reader)
            elif isinstance(held, nn.Module):
                found.add(held)
                self.reads.uses.setdefault(held, set()).add(node)
            elif isinstance(held, list | tuple | dict):
                values = held.values() if isinstance(held, dict) else held
                found |= {value for value in values if isinstance(value, nn.Module)}
        return frozenset(found)

    def _methods(self, called: ast.Attribute) -> list[tuple[nn.Module, FunctionType]]:
        """The methods that `module.name` or `super().name` may be."""
        value = called.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
            found = [
                (module, vars(cls)[called.attr])
                for module in self.known.get(self.first, NONE)
                for cls in type(module).__mro__[1:]
                if called.attr in vars(cls) and cls is not nn.Module
            ]
        else:
            found = [
                (module, inspect.getattr_static(type(module), called.attr, None))
                for module in self.visit(value)
                if not isinstance(module, nn.Conv2d | nn.Linear) and not hasattr(nn.Module, called.attr)
            ]
        return [(module, method) for module, method in found if isinstance(method, FunctionType)]

    def _global(self, called: ast.expr) -> FunctionType | None:
        """The function that `name` or `package.name` is where this function is defined."""
        names = {**vars(builtins), **self.function.__globals__, **inspect.getclosurevars(self.function).nonlocals}
        found: Any = None
        if isinstance(called, ast.Name):
            found = names.get(called.id)
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            package = names.get(called.value.id)
            found = getattr(package, called.attr, None) if isinstance(package, ModuleType) else None
        return found if isinstance(found, FunctionType) else None


def _elements(module: nn.Module) -> set[nn.Module]:
    """What indexing or iterating gives: the children of a container; another module stands for itself."""
    return set(module.children()) if isinstance(module, CONTAINERS) else {module}


def _forwards(module: nn.Module) -> list[FunctionType]:
    cls: type = type(module)
    return _forwards_of(cls)


@cache
def _forwards_of(cls: type) -> list[FunctionType]:
    methods = inspect.getmembers(cls, inspect.isfunction)
    return [method for name, method in methods if name.lstrip("_").startswith("forward")]


@cache
def _tree(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The syntax tree of a function; None if its source is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef)), None)
